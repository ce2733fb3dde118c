// Drives the accept output of a line from the records of snl-run:
//
//     snl-run --engine line.onnx --camera 0 --product washer | AcceptHost.exe 100 washer
//
// The output is true for a part with PASS and for nothing else, and only for HOLD_MS milliseconds, so that a part without a verdict never finds it true.
// A line that is no record, an unknown verdict, a frame without a record, another product and the end of the records are faults. A fault stays until the
// program is started again. Records are read on after a fault: snl-run would stop if nobody read them.
using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Globalization;
using System.IO;
using System.Text;
using System.Text.RegularExpressions;

/// <summary>What is wired to the line; it must fall to (false, true) by itself when this process dies (watchdog).</summary>
public interface IAcceptOutput
{
    void Write(bool accept, bool fault);
}

public sealed class PrintedOutput : IAcceptOutput
{
    public void Write(bool accept, bool fault)
    {
        Console.Out.Write("accept={0} fault={1}\n", accept ? 1 : 0, fault ? 1 : 0);
        Console.Out.Flush();
    }
}

/// <summary>Judges one record after the other. Every check throws, and whatever is thrown is a fault.</summary>
public sealed class RecordGate
{
    private readonly string product;
    private long nextIndex;

    public RecordGate(string product)
    {
        this.product = product;
    }

    /// <summary>Returns whether the part of this record is accepted.</summary>
    public bool Accepts(string line)
    {
        Dictionary<string, string> record = JsonReader.ReadObject(line);
        Expect(record["record"] == "1", "record schema is not 1");
        Expect(record["frame_index"] == nextIndex.ToString(CultureInfo.InvariantCulture), "a frame without a record before frame " + record["frame_index"]);
        nextIndex++;
        Expect(product == null || JsonReader.Text(record["product"]) == product, "another product: " + record["product"]);
        string verdict = JsonReader.Text(record["verdict"]);
        if (verdict == "PASS")
        {
            Expect(JsonReader.IsNumber(record["score"]) && JsonReader.IsNumber(record["threshold"]), "PASS without a score and a threshold");
            return true;
        }
        Expect(verdict == "REVIEW" || verdict == "REJECT" || verdict == "ERROR", "unknown verdict: " + verdict);
        return false;
    }

    private static void Expect(bool holds, string otherwise)
    {
        if (!holds)
        {
            throw new FormatException(otherwise);
        }
    }
}

/// <summary>
/// Reads strict JSON (RFC 8259) and keeps the members of the outermost object as they were written. On .NET 6 and newer use System.Text.Json instead;
/// JsonReaderWriterFactory, which .NET Framework and Mono have, let NaN and a second closing brace pass.
/// </summary>
public sealed class JsonReader
{
    private static readonly Regex String = new Regex(@"\G""(?>[^""\\\x00-\x1f]+|\\[""\\/bfnrt]|\\u[0-9a-fA-F]{4})*""");
    private static readonly Regex Number = new Regex(@"\G-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?");
    private static readonly Regex Word = new Regex(@"\G(?:true|false|null)");
    private const int DeepestNesting = 16;

    private readonly string text;
    private int at;

    private JsonReader(string text)
    {
        this.text = text;
    }

    public static Dictionary<string, string> ReadObject(string text)
    {
        var reader = new JsonReader(text);
        var members = new Dictionary<string, string>();
        reader.Object(members, 0);
        reader.Blanks();
        reader.Expect(reader.at == text.Length);
        return members;
    }

    public static bool IsNumber(string written)
    {
        return written[0] == '-' || (written[0] >= '0' && written[0] <= '9');
    }

    /// <summary>Returns what a text means, null if something else is written.</summary>
    public static string Text(string written)
    {
        if (written[0] != '"')
        {
            return null;
        }
        return Regex.Replace(written.Substring(1, written.Length - 2), @"\\(?:u(.{4})|(.))", escape =>
        {
            if (escape.Groups[1].Success)
            {
                return ((char)int.Parse(escape.Groups[1].Value, NumberStyles.HexNumber, CultureInfo.InvariantCulture)).ToString();
            }
            int control = "bfnrt".IndexOf(escape.Groups[2].Value, StringComparison.Ordinal);
            return control < 0 ? escape.Groups[2].Value : "\b\f\n\r\t"[control].ToString();
        });
    }

    private void Object(Dictionary<string, string> members, int depth)
    {
        Sequence('{', '}', () =>
        {
            string name = Token(String);
            Blanks();
            Take(':');
            Blanks();
            int start = at;
            Value(depth + 1);
            members.Add(name.Substring(1, name.Length - 2), text.Substring(start, at - start));  // throws if the name is there twice
        });
    }

    private void Value(int depth)
    {
        Expect(depth < DeepestNesting && at < text.Length);
        switch (text[at])
        {
            case '{': Object(new Dictionary<string, string>(), depth); break;
            case '[': Sequence('[', ']', () => Value(depth + 1)); break;
            case '"': Token(String); break;
            case 't': case 'f': case 'n': Token(Word); break;
            default: Token(Number); break;
        }
    }

    private void Sequence(char open, char close, Action element)
    {
        Blanks();
        Take(open);
        Blanks();
        if (at < text.Length && text[at] == close)
        {
            at++;
            return;
        }
        for (;;)
        {
            Blanks();
            element();
            Blanks();
            if (at < text.Length && text[at] == close)
            {
                at++;
                return;
            }
            Take(',');
        }
    }

    private string Token(Regex kind)
    {
        Match match = kind.Match(text, at);
        Expect(match.Success && match.Length > 0);
        at += match.Length;
        return match.Value;
    }

    private void Take(char expected)
    {
        Expect(at < text.Length && text[at] == expected);
        at++;
    }

    private void Blanks()
    {
        while (at < text.Length && " \t\r\n".IndexOf(text[at]) >= 0)
        {
            at++;
        }
    }

    private void Expect(bool holds)
    {
        if (!holds)
        {
            throw new FormatException("a line is no JSON object, see its column " + (at + 1));
        }
    }
}

public sealed class Host
{
    private const int LongestLine = 1 << 20;
    private static readonly UTF8Encoding StrictUtf8 = new UTF8Encoding(false, true);

    private readonly RecordGate gate;
    private readonly IAcceptOutput output;
    private readonly int holdMs;
    private readonly Stopwatch clock = Stopwatch.StartNew();
    private readonly MemoryStream line = new MemoryStream();
    private long until;
    private bool accept;
    private bool fault;

    public Host(RecordGate gate, IAcceptOutput output, int holdMs)
    {
        this.gate = gate;
        this.output = output;
        this.holdMs = holdMs;
    }

    public void Run(Stream input)
    {
        output.Write(false, false);
        var chunk = new byte[1 << 16];
        for (;;)
        {
            var next = input.ReadAsync(chunk, 0, chunk.Length);
            while (accept && !next.IsCompleted)
            {
                if (!next.Wait(Math.Max(0, (int)(until - clock.ElapsedMilliseconds))))
                {
                    Set(false);
                }
            }
            if (next.Result == 0)
            {
                break;
            }
            Take(chunk, next.Result);
        }
        Fail("the records have ended");
    }

    private void Take(byte[] chunk, int size)
    {
        for (int i = 0; i < size; i++)
        {
            if (chunk[i] == '\n')
            {
                Judge(line.ToArray());
                line.SetLength(0);
            }
            else if (line.Length < LongestLine)
            {
                line.WriteByte(chunk[i]);  // a longer line is cut, so it is no JSON and a fault
            }
        }
    }

    private void Judge(byte[] record)
    {
        if (fault)
        {
            return;
        }
        try
        {
            Set(gate.Accepts(StrictUtf8.GetString(record)));
        }
        catch (Exception error)
        {
            Fail(error.Message);
        }
    }

    private void Set(bool value)
    {
        accept = value;
        until = clock.ElapsedMilliseconds + holdMs;
        output.Write(accept, fault);
    }

    private void Fail(string why)
    {
        if (!fault)
        {
            Console.Error.WriteLine("AcceptHost: fault: " + why);
        }
        fault = true;
        Set(false);
    }
}

public static class Program
{
    public static int Main(string[] arguments)
    {
        int holdMs;
        if (arguments.Length < 1 || arguments.Length > 2 || !int.TryParse(arguments[0], out holdMs) || holdMs <= 0)
        {
            Console.Error.WriteLine("usage: snl-run ... | AcceptHost HOLD_MS [PRODUCT]");
            return 2;
        }
        var gate = new RecordGate(arguments.Length == 2 ? arguments[1] : null);
        new Host(gate, new PrintedOutput(), holdMs).Run(Console.OpenStandardInput());
        return 1;  // without records nobody inspects: no good ending
    }
}
