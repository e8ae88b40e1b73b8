// Verifies whole chunk files, for `kvshelf scrub`: everything that docs/format.md asks of a file
// but its geometry, which its name does not tell. Reads leave the page cache as it was.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvshelf/format.h"
#include "kvshelf/memory.h"

namespace kvshelf {

// The values are those of src/kvshelf/upkeep/scrub/verify.py.
enum class Verdict : std::uint8_t {
  kSound = 0,
  kPadding = 1,    // sound, but the bytes behind the payload are not zero
  kCorrupt = 2,    // header or payload is damaged, or the file too short or too long
  kVersion = 3,    // a sound header of a format version, packing or kind of tags that is not known
  kMisplaced = 4,  // a sound header of another namespace, rank or key
  kFault = 5,      // the storage did not give the bytes: `error` is an errno
  kSealed = 6,     // header and size are right; the payload has tags, and there is no key
};

// What a file's path says about it.
struct ExpectedChunk {
  std::string_view namespace_start;  // the digest, or its first bytes, at most kNamespaceBytes
  std::string_view key;
  std::uint32_t rank = 0;
  std::optional<bool> authenticated;  // whether the namespace's chunks carry tags, if known
  bool use_key = false;               // whether they are those of the verifier's key
};

// One file at a time, in steps, so that the caller decides how fast. Used by one thread at a time.
class ChunkVerifier {
 public:
  // `auth_key` empty: none. Throws as AuthKey does.
  ChunkVerifier(std::size_t step_bytes, const std::string& auth_key);

  // Reads and checks the header and the beginning of the payload. `fd` must stay open until Step
  // has returned true or another file begins; `file_bytes` is what fstat said. O_DIRECT is used if
  // the descriptor has it, and taken from it if the file system refuses. True if the verdict is
  // known.
  bool Begin(int fd, std::uint64_t file_bytes, const ExpectedChunk& expected);

  // Reads and checks the next `step_bytes` at most. True if the verdict is known.
  bool Step();

  Verdict verdict() const { return verdict_; }
  int error() const { return error_; }
  // What is wrong, in words; empty for a sound file.
  const std::string& reason() const { return reason_; }
  // Bytes read from the file since Begin.
  std::uint64_t bytes_read() const { return bytes_read_; }

 private:
  bool Judge(Verdict verdict, std::string reason);
  bool CheckHeader(const ExpectedChunk& expected);
  const ChunkHeader& header() const { return *reinterpret_cast<const ChunkHeader*>(page_.data()); }
  // The next bytes behind the header: pieces, each with its padding.
  bool Check(const std::byte* data, std::uint64_t bytes);
  bool EndPiece();
  // Into the buffer. Whether all bytes came; if not, the verdict is known.
  bool Read(std::uint64_t bytes, std::uint64_t offset);
  std::int64_t ReadSome(std::byte* data, std::uint64_t bytes, std::uint64_t offset);

  std::optional<AuthKey> key_;
  std::optional<PieceCoder> coder_;  // of the file, once its header was checked
  StagingBuffer buffer_;
  StagingBuffer page_;  // the header
  int fd_ = -1;
  bool direct_ = false;
  std::uint64_t file_bytes_ = 0;
  std::size_t piece_ = 0;       // that is being checked
  std::uint64_t in_piece_ = 0;  // bytes of it that were checked, then of its padding
  bool padding_is_zero_ = true;
  std::vector<std::byte> packed_;  // the piece, if it is a packed one
  Verdict verdict_ = Verdict::kSound;
  int error_ = 0;
  std::string reason_;
  std::uint64_t bytes_read_ = 0;
};

}  // namespace kvshelf
