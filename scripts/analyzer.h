/* analyzer.h - told to clang-tidy before every file but the core: ddpm_fail returns the code it is given, never
 * DDPM_OK. Without it the analyzer, which looks at one file at a time, goes on after a failed allocation. */
#include "ddpm.h"
#define ddpm_fail(code, ...) ((void)ddpm_fail((code), __VA_ARGS__), (code))
