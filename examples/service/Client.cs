// Send one image to snl-serve and act on the answer: Client.exe http://127.0.0.1:8000 part.png bottle [TOKEN]
using System;
using System.IO;
using System.Net.Http;
using System.Text.RegularExpressions;

static class Client
{
    // Whatever goes wrong on the way is an ERROR, never a PASS.
    static string VerdictOf(string service, string file, string product, string token)
    {
        try
        {
            using (var http = new HttpClient { Timeout = TimeSpan.FromSeconds(2) })
            {
                http.DefaultRequestHeaders.Add("Authorization", "Bearer " + token);
                var url = service + "/inspect?product=" + Uri.EscapeDataString(product);
                var answer = http.PostAsync(url, new ByteArrayContent(File.ReadAllBytes(file))).Result;
                var verdict = Regex.Match(answer.Content.ReadAsStringAsync().Result, "\"verdict\": \"(PASS|REVIEW|REJECT)\"");
                return (int)answer.StatusCode == 200 && verdict.Success ? verdict.Groups[1].Value : "ERROR";
            }
        }
        catch (Exception) { return "ERROR"; }
    }

    static void Main(string[] args)
    {
        Console.WriteLine(VerdictOf(args[0], args[1], args[2], args.Length > 3 ? args[3] : ""));
    }
}
