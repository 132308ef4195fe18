// What a sanitizer has to notice: only in builds with NIX_STORE_FS_SANITIZE, and called by one test (src/store/sanitize_tests.rs). A
// build without the sanitizers would do it without a word.

#include <climits>
#include <cstddef>
#include <cstdlib>
#include <unistd.h>

// Nix's library keeps what it has to the end of the process.
extern "C" const char * __asan_default_options()
{
    return "detect_leaks=0";
}

// As the program ends, and not as a test does: without the exit handlers of the libraries that Nix brings. With the sanitizers that of
// p11-kit waits for a lock of the C library for ever.
__attribute__((constructor)) static void end_at_once()
{
    on_exit([](int status, void *) { _exit(status); }, nullptr);
}

// Reads a byte behind the end of memory that somebody else has allocated: of a string from Rust, for example.
extern "C" unsigned char nsf_read_behind(const unsigned char * bytes, std::size_t length)
{
    return bytes[length];
}

// An overflow of a signed number is undefined.
extern "C" int nsf_overflow(int one)
{
    return INT_MAX + one;
}
