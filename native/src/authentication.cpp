#include "kvshelf/authentication.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "kvshelf/memory.h"

namespace kvshelf {
namespace crypto {

// As evp.h and hmac.h of OpenSSL 1.1 and 3 declare them; contexts, ciphers and digests are opaque.
struct Library {
  void* (*context_new)();
  void (*context_free)(void* context);
  const void* (*aes_256_gcm)();
  int (*encrypt_init)(void* context, const void* cipher, void* engine, const unsigned char* key,
                      const unsigned char* iv);
  int (*encrypt_update)(void* context, unsigned char* out, int* out_bytes, const unsigned char* in,
                        int in_bytes);
  int (*encrypt_final)(void* context, unsigned char* out, int* out_bytes);
  int (*context_ctrl)(void* context, int type, int argument, void* pointer);
  const void* (*sha256)();
  unsigned char* (*hmac)(const void* digest, const void* key, int key_bytes,
                         const unsigned char* data, std::size_t bytes, unsigned char* out,
                         unsigned int* out_bytes);
};

}  // namespace crypto

namespace {

constexpr int kCtrlGetTag = 0x10;  // EVP_CTRL_AEAD_GET_TAG
constexpr std::size_t kIvBytes = 12;
constexpr char kPurpose[] = "kvshelf chunk 1";

template <typename Function>
void Bind(void* library, const char* symbol, Function* function) {
  void* address = dlsym(library, symbol);
  if (address == nullptr) throw std::runtime_error(std::string("libcrypto has no ") + symbol);
  *function = reinterpret_cast<Function>(address);
}

crypto::Library Open() {
  void* library = nullptr;
  for (const char* name : {"libcrypto.so.3", "libcrypto.so.1.1", "libcrypto.so"}) {
    library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) break;
  }
  if (library == nullptr) {
    throw std::runtime_error("an authentication key needs OpenSSL's libcrypto.so.3: not found");
  }
  crypto::Library bound{};
  Bind(library, "EVP_CIPHER_CTX_new", &bound.context_new);
  Bind(library, "EVP_CIPHER_CTX_free", &bound.context_free);
  Bind(library, "EVP_aes_256_gcm", &bound.aes_256_gcm);
  Bind(library, "EVP_EncryptInit_ex", &bound.encrypt_init);
  Bind(library, "EVP_EncryptUpdate", &bound.encrypt_update);
  Bind(library, "EVP_EncryptFinal_ex", &bound.encrypt_final);
  Bind(library, "EVP_CIPHER_CTX_ctrl", &bound.context_ctrl);
  Bind(library, "EVP_sha256", &bound.sha256);
  Bind(library, "HMAC", &bound.hmac);
  return bound;
}

const crypto::Library& TheLibrary() {
  static const crypto::Library library = Open();  // tried again by the next call if it throws
  return library;
}

}  // namespace

Tagger::Tagger(const crypto::Library& library, const std::array<std::uint8_t, 32>& file_key)
    : library_(&library), context_(library.context_new()) {
  ok_ = context_ != nullptr && library.encrypt_init(context_, library.aes_256_gcm(), nullptr,
                                                    file_key.data(), nullptr) == 1;
}

Tagger::~Tagger() {
  if (context_ != nullptr) library_->context_free(context_);
}

Tagger::Tagger(Tagger&& other) noexcept
    : library_(other.library_), context_(std::exchange(other.context_, nullptr)), ok_(other.ok_) {}

Tagger& Tagger::operator=(Tagger&& other) noexcept {
  std::swap(library_, other.library_);
  std::swap(context_, other.context_);
  std::swap(ok_, other.ok_);
  return *this;
}

void Tagger::Begin(std::uint32_t index) {
  std::array<unsigned char, kIvBytes> iv{};
  std::memcpy(iv.data(), &index, sizeof(index));
  ok_ = ok_ && library_->encrypt_init(context_, nullptr, nullptr, nullptr, iv.data()) == 1;
}

void Tagger::Update(const void* data, std::size_t bytes) {
  const auto* next = static_cast<const unsigned char*>(data);
  while (ok_ && bytes > 0) {
    const int part = static_cast<int>(bytes < INT_MAX ? bytes : INT_MAX);
    int ignored = 0;
    ok_ = library_->encrypt_update(context_, nullptr, &ignored, next, part) == 1;
    next += part;
    bytes -= static_cast<std::size_t>(part);
  }
}

bool Tagger::End(Tag* tag) {
  int ignored = 0;
  unsigned char nothing[16];
  ok_ = ok_ && library_->encrypt_final(context_, nothing, &ignored) == 1 &&
        library_->context_ctrl(context_, kCtrlGetTag, sizeof(*tag), tag->data()) == 1;
  return ok_;
}

AuthKey::AuthKey(std::string secret) : library_(TheLibrary()), secret_(std::move(secret)) {
  RandomSalt();  // a kernel that has none says so here and not in an I/O thread
}

Tagger AuthKey::ForFile(const Salt& salt) const {
  std::array<unsigned char, sizeof(kPurpose) - 1 + kSaltBytes> message;
  std::memcpy(message.data(), kPurpose, sizeof(kPurpose) - 1);
  std::memcpy(message.data() + sizeof(kPurpose) - 1, salt.data(), salt.size());
  std::array<std::uint8_t, 32> file_key{};
  unsigned int bytes = 0;
  library_.hmac(library_.sha256(), secret_.data(), static_cast<int>(secret_.size()), message.data(),
                message.size(), file_key.data(), &bytes);
  // Should the library fail, the file gets a key that nobody knows: a miss.
  if (bytes != file_key.size()) file_key = RandomSalt();
  return {library_, file_key};
}

Salt AuthKey::RandomSalt() {
  Salt salt;
  // At most 256 bytes are not interrupted by signals (getrandom(2)).
  if (::getrandom(salt.data(), salt.size(), 0) == static_cast<ssize_t>(salt.size())) return salt;
  const int error = errno;
  // A container's profile may forbid the call.
  const UniqueFd device(::open("/dev/urandom", O_RDONLY | O_CLOEXEC));
  if (!device ||
      ::read(device.get(), salt.data(), salt.size()) != static_cast<ssize_t>(salt.size())) {
    throw std::system_error(error, std::generic_category(), "getrandom");
  }
  return salt;
}

}  // namespace kvshelf
