// Drives the accept output of a line from the records of snl-run:
//
//     snl-run --engine line.onnx --camera 0 --product washer | ./accept_host 100 washer
//
// The output is true for a part with PASS and for nothing else, and only for HOLD_MS milliseconds, so that a part without a verdict never finds it true.
// A line that is no record, an unknown verdict, a frame without a record, another product and the end of the records are faults. A fault stays until the
// program is started again. Records are read on after a fault: snl-run would stop if nobody read them.
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <set>
#include <stdexcept>
#include <string>

#include <poll.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

using nlohmann::json;

// What is wired to the line. Replace PrintedOutput by your digital output; it must fall to (false, true) by itself when this process dies (watchdog).
class AcceptOutput {
 public:
  virtual ~AcceptOutput() = default;
  virtual void write(bool accept, bool fault) = 0;
};

class PrintedOutput final : public AcceptOutput {
 public:
  void write(bool accept, bool fault) override { std::cout << "accept=" << accept << " fault=" << fault << std::endl; }
};

// Judges one record after the other. Every check throws, and whatever is thrown is a fault.
class RecordGate {
 public:
  explicit RecordGate(std::string product) : product_(std::move(product)) {}

  // Returns whether the part of this record is accepted.
  bool accepts(const std::string& line) {
    const json record = parse(line);
    expect(record.at("record") == 1, "record schema is not 1");
    const json& index = record.at("frame_index");
    expect(index.is_number_unsigned() && index.get<std::uint64_t>() == next_index_, "a frame without a record before frame " + index.dump());
    ++next_index_;
    expect(product_.empty() || record.at("product") == product_, "another product: " + record.at("product").dump());
    const std::string verdict = record.at("verdict").get<std::string>();
    if (verdict == "PASS") {
      expect(record.at("score").is_number() && record.at("threshold").is_number(), "PASS without a score and a threshold");
      return true;
    }
    expect(verdict == "REVIEW" || verdict == "REJECT" || verdict == "ERROR", "unknown verdict: " + verdict);
    return false;
  }

 private:
  static json parse(const std::string& line) {
    std::set<std::string> names;
    return json::parse(line, [&names](int depth, json::parse_event_t event, json& name) {
      if (depth == 1 && event == json::parse_event_t::key) expect(names.insert(name).second, "a name is there twice: " + name.dump());
      return true;
    });
  }

  static void expect(bool holds, const std::string& otherwise) {
    if (!holds) throw std::runtime_error(otherwise);
  }

  std::string product_;
  std::uint64_t next_index_ = 0;
};

class Host {
 public:
  Host(RecordGate gate, AcceptOutput& output, int hold_ms) : gate_(std::move(gate)), output_(output), hold_(hold_ms) {}

  void run() {
    output_.write(false, false);
    char chunk[1 << 16];
    for (;;) {
      pollfd input{STDIN_FILENO, POLLIN, 0};
      const int ready = poll(&input, 1, accept_ ? left_ms() : -1);
      if (ready == 0) {
        set(false);
        continue;
      }
      const ssize_t size = ready < 0 ? -1 : read(STDIN_FILENO, chunk, sizeof chunk);
      if (size < 0 && errno == EINTR) continue;
      if (size <= 0) break;
      take(chunk, static_cast<std::size_t>(size));
    }
    fail("the records have ended");
  }

 private:
  static constexpr std::size_t kLongestLine = 1 << 20;

  int left_ms() const {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until_ - std::chrono::steady_clock::now());
    return static_cast<int>(std::max<std::int64_t>(left.count(), 0));
  }

  void take(const char* chunk, std::size_t size) {
    for (std::size_t i = 0; i < size; ++i) {
      if (chunk[i] == '\n') {
        judge(line_);
        line_.clear();
      } else if (line_.size() < kLongestLine) {
        line_ += chunk[i];  // a longer line is cut, so it is no JSON and a fault
      }
    }
  }

  void judge(const std::string& line) {
    if (fault_) return;
    try {
      set(gate_.accepts(line));
    } catch (const std::exception& error) {
      fail(error.what());
    }
  }

  void set(bool accept) {
    accept_ = accept;
    until_ = std::chrono::steady_clock::now() + hold_;
    output_.write(accept_, fault_);
  }

  void fail(const std::string& why) {
    if (!fault_) std::cerr << "accept_host: fault: " << why << std::endl;
    fault_ = true;
    set(false);
  }

  RecordGate gate_;
  AcceptOutput& output_;
  std::chrono::milliseconds hold_;
  std::chrono::steady_clock::time_point until_;
  std::string line_;
  bool accept_ = false;
  bool fault_ = false;
};

int main(int count, char** arguments) {
  const int hold_ms = count >= 2 ? std::atoi(arguments[1]) : 0;
  if (count > 3 || hold_ms <= 0) {
    std::cerr << "usage: snl-run ... | accept_host HOLD_MS [PRODUCT]" << std::endl;
    return 2;
  }
  PrintedOutput output;
  Host(RecordGate(count == 3 ? arguments[2] : ""), output, hold_ms).run();
  return 1;  // without records nobody inspects: no good ending
}
