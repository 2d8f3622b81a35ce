/* analyzer.h - told to clang-tidy before every file but the core. It looks at one file at a time, so it goes on after a
 * failed allocation, unless it hears that ddpm_fail returns the code it is given, never DDPM_OK; and after a failed
 * assertion of a test, unless it hears that none returns. */
#define _DEFAULT_SOURCE 1 /* which some files define: too late here */
#include "ddpm.h"
#define ddpm_fail(code, ...) ((void)ddpm_fail((code), __VA_ARGS__), (code))
#if __has_include(<cmocka.h>)
#include <setjmp.h>
#include <stdarg.h>
/* cmocka.h comes after those two and */
#include <stddef.h>
#include <cmocka.h>
#undef assert_int_equal
#define assert_int_equal(a, b) ((a) == (b) ? (void)0 : __builtin_unreachable())
#endif
