#include <algorithm>

#include "kvshelf/chunk_io.h"

namespace kvshelf {

PieceHasher::PieceHasher(std::uint64_t piece_bytes, const AuthKey* key)
    : piece_bytes_(piece_bytes),
      salt_(key == nullptr ? Salt{} : AuthKey::RandomSalt()),
      coder_(key, salt_) {}

void PieceHasher::Update(const std::byte* data, std::uint64_t bytes) {
  while (bytes > 0) {
    if (in_piece_ == 0) coder_.Begin(static_cast<std::uint32_t>(codes_.size()));
    const std::uint64_t part = std::min(bytes, piece_bytes_ - in_piece_);
    coder_.Update(data, part);
    in_piece_ += part;
    if (in_piece_ == piece_bytes_) EndPiece();
    data += part;
    bytes -= part;
  }
}

void PieceHasher::AddPiece(const std::byte* data, std::uint32_t stored_bytes) {
  coder_.Begin(static_cast<std::uint32_t>(codes_.size()));
  coder_.Update(data, stored_bytes);
  EndPiece();
  stored_bytes_.push_back(stored_bytes);
}

void PieceHasher::EndPiece() {
  ok_ = coder_.End(&codes_.emplace_back()) && ok_;
  in_piece_ = 0;
}

bool PieceHasher::Seal(ChunkHeader& header) {
  if (in_piece_ > 0) EndPiece();
  header.salt = salt_;
  // A file of which no piece was packed is one of the first version, for all who read that.
  bool is_packed = false;
  for (std::size_t piece = 0; piece < stored_bytes_.size(); ++piece) {
    is_packed = is_packed || stored_bytes_[piece] < PlainBytes(header, piece);
  }
  if (is_packed) SetStoredBytes(header, stored_bytes_);
  for (std::size_t piece = 0; piece < codes_.size(); ++piece) {
    SetPieceCode(header, piece, codes_[piece]);
  }
  return SealHeader(header, coder_) && ok_;
}

}  // namespace kvshelf
