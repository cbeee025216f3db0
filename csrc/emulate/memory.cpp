#include "memory.h"

#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <new>

namespace sda_fast::emulate {
namespace {

struct Pages {
  unsigned char* first;  // a page that nothing may touch
  unsigned char* begin;  // the pages between
  unsigned char* end;    // another one
  size_t bytes;          // of the array
};

std::mutex mutex;
std::map<unsigned char*, Pages> arrays;

size_t page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

std::string name_of(const Pages& p) { return "an array of " + std::to_string(p.bytes) + " bytes"; }

}  // namespace

void* allocate(size_t bytes, size_t gap) {
  const size_t size = bytes + gap;
  const size_t inner = std::max<size_t>(1, (size + page() - 1) / page()) * page();
  void* pages = mmap(nullptr, inner + 2 * page(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  auto* first = static_cast<unsigned char*>(pages);
  auto* begin = first + page();
  if (mprotect(begin, inner, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  std::memset(begin, kPoison, inner);

  unsigned char* array = begin + inner - size;
  const std::lock_guard lock(mutex);
  arrays[array] = {first, begin, begin + inner, bytes};
  return array;
}

void release(void* array) {
  const std::lock_guard lock(mutex);
  const auto it = arrays.find(static_cast<unsigned char*>(array));
  munmap(it->second.first, static_cast<size_t>(it->second.end - it->second.first) + page());
  arrays.erase(it);
}

std::string beyond(const void* address) {
  const auto* p = static_cast<const unsigned char*>(address);
  for (const auto& [array, pages] : arrays) {
    if (p >= pages.first && p < pages.begin) {
      return std::to_string(array - p) + " bytes before " + name_of(pages);
    }
    if (p >= pages.end && p < pages.end + page()) {
      return std::to_string(p - array - static_cast<ptrdiff_t>(pages.bytes)) +
             " bytes after the end of " + name_of(pages);
    }
  }
  return {};
}

std::string damaged() {
  const std::lock_guard lock(mutex);
  const auto poisoned = [](const unsigned char* begin, const unsigned char* end) {
    if (begin == end) return true;
    return *begin == kPoison && std::memcmp(begin, begin + 1, end - begin - 1) == 0;
  };
  for (const auto& [array, pages] : arrays) {
    if (!poisoned(pages.begin, array)) return "before " + name_of(pages);
    if (!poisoned(array + pages.bytes, pages.end)) return "after the end of " + name_of(pages);
  }
  return {};
}

namespace {

thread_local char anchor;  // touched so that this thread has the library's local storage

int poison_module(dl_phdr_info* info, size_t, void*) {
  auto* storage = static_cast<unsigned char*>(info->dlpi_tls_data);
  if (storage == nullptr) return 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    if (header.p_type != PT_TLS) continue;
    const auto* p = reinterpret_cast<const unsigned char*>(&anchor);
    if (p < storage || p >= storage + header.p_memsz) continue;
    std::memset(storage, kPoison, header.p_memsz);
    return 1;
  }
  return 0;
}

}  // namespace

void poison_shared() {
  const_cast<volatile char&>(anchor) = 0;
  dl_iterate_phdr(poison_module, nullptr);
}

}  // namespace sda_fast::emulate
