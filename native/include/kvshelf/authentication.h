// Chunk files that only holders of a secret key can make (docs/format.md, "Authentication"): GMAC
// by the system's OpenSSL, which is opened when a key is given.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace kvshelf {

namespace crypto {
struct Library;  // the functions of libcrypto that are used
}

inline constexpr std::size_t kSaltBytes = 32;
using Salt = std::array<std::uint8_t, kSaltBytes>;
// 16 bytes as they lie in the file.
using Tag = std::array<std::uint64_t, 2>;

// Tags the pieces and the header of one file, one after the other. Used by one thread at a time.
// An error of the library shows in End.
class Tagger {
 public:
  Tagger(const crypto::Library& library, const std::array<std::uint8_t, 32>& file_key);
  ~Tagger();
  Tagger(Tagger&& other) noexcept;
  Tagger& operator=(Tagger&& other) noexcept;

  // `index` is the piece's, or the header's; each at most once in a file that is written.
  void Begin(std::uint32_t index);
  void Update(const void* data, std::size_t bytes);
  // False: there is no tag, and what was fed counts as not authentic.
  bool End(Tag* tag);

 private:
  const crypto::Library* library_;
  void* context_;  // EVP_CIPHER_CTX
  bool ok_ = true;
};

// A secret key. Const methods may be called from any thread.
class AuthKey {
 public:
  // Throws std::runtime_error if there is no libcrypto, std::system_error if no random numbers.
  explicit AuthKey(std::string secret);

  Tagger ForFile(const Salt& salt) const;
  static Salt RandomSalt();

 private:
  const crypto::Library& library_;
  std::string secret_;
};

}  // namespace kvshelf
