# ddpm.c: diffusion models in plain C. `make help` explains every target and variable.
# Needs make, a C compiler and git; what else is missing scripts/dependencies.sh finds or installs, saying so first.
# Objects lie in build/<compiler>[-variant]/, so that builds with different compilers or flags never mix.
#
# Contents: variables, dependencies, sources, rules, targets

# ---- variables ---------------------------------------------------------------------------------------------------
VARIANT  ?= release#         release, link (built fast), sanitize (address, undefined), thread, fuzz (clang's libFuzzer)
BUILD    ?= build#           directory of everything that is built; elsewhere ./ddpm is left alone
WERROR   ?= -Werror#         empty: warnings do not stop the build
INSTALL  ?= yes#             no: name what is missing instead of installing it
FUZZ_SECONDS ?= 60#          for each fuzz target in `make check-long`
CUDA     ?=#                 yes: with cuda_backend.cu, as `make cuda` builds
MPI      ?=#                 yes: with comm/mpi.c, as `make mpi` builds
NCCL_HOME ?=#                where NCCL is (include/nccl.h, lib/libnccl.so.2), for several GPUs; empty: where the compiler looks
CUDA_ARCH ?=#                for `make cuda`: 80, 90, ...; empty: this machine's GPU, or sm_75 to sm_90 and PTX
PYTHON   ?=#                 a Python with torch and diffusers for `make parity`; empty: build/venv is made
# Also: CC (cc, gcc, clang), CFLAGS (-O3 -g), V=1 (prints whole commands)

CFLAGS   ?= -O3 -g
comma := ,
VARIANT_link     := -O0
VARIANT_sanitize := -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
VARIANT_thread   := -O1 -fsanitize=thread
VARIANT_fuzz     := -O1 -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all
WARNINGS := -Wall -Wextra -Wpedantic $(strip $(WERROR))
# -ffp-contract=off: the same bits whether or not the compiler finds a fused multiply-add.
ALL_CFLAGS = -std=c11 $(CFLAGS) $(VARIANT_$(VARIANT)) $(WARNINGS) -D_POSIX_C_SOURCE=200809L -ffp-contract=off -pthread -I. $(OPENMP) $(DEPS_CFLAGS)
LIBS = $(DEPS_LIBS) -lm

ifeq ($(strip $(CUDA)),yes) # nvcc compiles cuda_backend.cu, $(CC) the rest; the runtime is linked statically
NVCC     := $(shell command -v nvcc || ls /usr/local/cuda/bin/nvcc /opt/cuda/bin/nvcc 2>/dev/null | head -n 1)
CUDA_LIB := $(shell $(NVCC) --dryrun any.cu 2>&1 | sed -n 's/.*LIBRARIES=//p' | tr -d '"')
CUDA_FLAGS = -std=c++17 -O3 --fmad=false -lineinfo --threads 0 $(if $(WERROR),-Werror all-warnings) -Xcompiler -Wall,-fno-strict-aliasing -I.
ALL_CFLAGS += -DDDPM_CUDA
LIBS     += $(CUDA_LIB) -lcudart_static -lstdc++ -lpthread -ldl -lrt
# NCCL, for more than one GPU, if it is here.
NCCL_CFLAGS := $(shell $(NVCC) --dryrun any.cu 2>&1 | sed -n 's/.*[^_]INCLUDES=//p' | tr -d '"' | sed 's/-I/-isystem /g') $(patsubst %,-isystem %/include,$(strip $(NCCL_HOME)))
NCCL_LIBS   := $(foreach at,$(abspath $(NCCL_HOME)),-L$(at)/lib -Wl$(comma)-rpath$(comma)$(at)/lib) -l:libnccl.so.2
NCCL := $(if $(strip $(NCCL_HOME)),$(wildcard $(strip $(NCCL_HOME))/include/nccl.h),yes)
NCCL := $(if $(NCCL),$(shell printf '\043include <nccl.h>\nint main(void) { return !ncclGetErrorString(ncclSuccess); }' | \
          $(CC) -x c $(NCCL_CFLAGS) - -o /dev/null $(NCCL_LIBS) $(CUDA_LIB) -lcudart_static -lstdc++ -lpthread -ldl -lrt -lm > /dev/null 2>&1 && echo yes))
ifeq ($(NCCL),yes)
ALL_CFLAGS += -DDDPM_NCCL
LIBS     += $(NCCL_LIBS)
else ifneq ($(strip $(NCCL_HOME)),)
$(error NCCL_HOME=$(strip $(NCCL_HOME)) has no NCCL that compiles and links: include/nccl.h and lib/libnccl.so.2 are needed)
else ifeq ($(MAKE_RESTARTS),)
$(info NCCL was not found: this build uses one GPU. For --gpus install libnccl-dev, or give NCCL_HOME=DIRECTORY)
endif
endif
ifeq ($(strip $(MPI)),yes)
ALL_CFLAGS += -DDDPM_MPI
endif

COMPILER := $(subst $() ,-,$(notdir $(CC)))
OBJ := $(BUILD)/$(COMPILER)$(patsubst %,-%,$(filter-out release,$(VARIANT)))$(if $(filter yes,$(CUDA)),-cuda)$(if $(filter yes,$(MPI)),-mpi)
PROGRAM := $(if $(filter build,$(BUILD)),.,$(BUILD))/ddpm
export CC BUILD INSTALL FUZZ_SECONDS PROGRAM COMPILER

.DEFAULT_GOAL := all
.PHONY: all demo readme mini sweep guidance experiment cuda cuda-tests cuda-report mpi bf16 test check-long lint bench bench-torch parity help clean tests fuzzers objects flags FORCE
.DELETE_ON_ERROR:
.SECONDARY:
MAKEFLAGS += --no-builtin-rules
ifeq ($(MAKELEVEL)$(filter -j% --jobserver%,$(MAKEFLAGS)),0)
MAKEFLAGS += -j$(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
endif

# ---- dependencies ------------------------------------------------------------------------------------------------
# Found by compiling small programs, once for each compiler; OPENMP, DEPS_CFLAGS, DEPS_LIBS and CMOCKA_* come from here.
TESTED := $(filter tests cuda-tests cuda-report bf16 fuzzers objects flags lint,$(MAKECMDGOALS))$(findstring /tests/,$(MAKECMDGOALS))$(findstring /cuda/,$(MAKECMDGOALS))
FOUND  := $(BUILD)/$(COMPILER)/$(if $(TESTED),test-)$(if $(filter yes,$(MPI)),mpi-)dependencies.mk
ifneq ($(filter-out help clean cuda mpi parity bench-torch test check-long,$(or $(MAKECMDGOALS),all)),)
include $(FOUND)
endif
$(FOUND): scripts/dependencies.sh
	@scripts/dependencies.sh $@ openmp stb cjson csv gif $(if $(TESTED),cmocka) $(if $(filter yes,$(MPI)),mpi)
ifeq ($(OPENMP_FOUND)$(filter-out all program demo readme mini sweep guidance experiment bench,$(or $(MAKECMDGOALS),all)),no)
$(info $(CC) has no OpenMP: ddpm will run on one thread)
endif

# ---- sources -----------------------------------------------------------------------------------------------------
# tests/check_grad.c is a private double-precision core with the gradient checks; `ddpm check-grad` prints its table.
# Other files in tests/ that are no test_*.c are shared by the test programs.
MAIN  := $(wildcard main.c)
ROOM  := $(filter-out main.c,$(wildcard *.c)) $(wildcard io/*.c lab/*.c cli/*.c tests/check_grad.c tests/selftest.c) \
         $(filter-out comm/mpi.c comm/nccl.c,$(wildcard comm/*.c)) $(if $(filter yes,$(MPI)),comm/mpi.c) $(if $(NCCL),comm/nccl.c)
SHARED := $(filter-out tests/test_%.c tests/check_grad.c tests/selftest.c,$(wildcard tests/*.c))
TESTS := $(wildcard tests/test_*.c)
FUZZ  := $(wildcard tests/fuzz/fuzz_*.c)
# lab/report.html as an array: a page is easier to write, and to read, as a page.
PAGE  := lab/report_page.c
object = $(patsubst %.c,$(OBJ)/%.o,$(1))
binary = $(patsubst %.c,$(OBJ)/%,$(1))

# ---- rules -------------------------------------------------------------------------------------------------------
ifeq ($(V),)
say = @printf '  %-5s %s\n' $(1) $(2);
endif

# Holds the command: objects are made anew when it changes.
$(OBJ)/flags: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' '$(subst ','\'',$(CC) $(ALL_CFLAGS) $(LIBS))' | cmp -s - $@ || \
	 printf '%s\n' '$(subst ','\'',$(CC) $(ALL_CFLAGS) $(LIBS))' > $@
# Holds what git calls this version: only what prints it is made anew when it changes.
$(OBJ)/version: FORCE
	@mkdir -p $(@D)
	@version=$$([ -e .git ] && git describe --tags --always --dirty 2>/dev/null || echo 0.2); \
	 printf '%s\n' "$$version" | cmp -s - $@ || printf '%s\n' "$$version" > $@
FORCE:

$(OBJ)/%.o: %.c $(OBJ)/flags
	@mkdir -p $(@D)
	$(call say,CC,$<) $(CC) $(ALL_CFLAGS) $(EXTRA) -MMD -MP -c $< -o $@
$(OBJ)/$(PAGE): lab/report.html
	@mkdir -p $(@D)
	@{ echo 'extern const unsigned char lab_report_page[];'; echo 'const unsigned char lab_report_page[] = {'; \
	 od -An -v -tu1 $< | sed 's/^ *//; s/  */,/g; s/$$/,/'; echo '0};'; } > $@
$(call object,$(PAGE)): $(OBJ)/%.o: $(OBJ)/%.c $(OBJ)/flags
	$(call say,CC,lab/report.html) $(CC) $(ALL_CFLAGS) -c $< -o $@
VERSIONED := $(call object,$(if $(MAIN),$(shell grep -l DDPM_VERSION $(MAIN) $(wildcard cli/*.c))))
$(VERSIONED): $(OBJ)/version
$(call object,comm/nccl.c): EXTRA = $(NCCL_CFLAGS)
$(VERSIONED): EXTRA = -DDDPM_VERSION='"$(shell cat $(OBJ)/version 2>/dev/null)"'

$(OBJ)/cuda_backend.o: cuda_backend.cu cuda_backend.h ddpm.h $(OBJ)/flags
	$(call say,NVCC,$<) $(NVCC) $(CUDA_FLAGS) $$(scripts/cuda_arch.sh $(CUDA_ARCH)) -c $< -o $@
$(OBJ)/ddpm: $(call object,$(MAIN) $(ROOM) $(PAGE)) $(if $(filter yes,$(CUDA)),$(OBJ)/cuda_backend.o)
	$(call say,LINK,$@) $(CC) $(ALL_CFLAGS) $^ -o $@ $(LIBS)
# A copy, compared by content: after a change of compiler both builds exist, and the one asked for is put in place.
.PHONY: program
program: $(OBJ)/ddpm
	@cmp -s $< $(PROGRAM) || { cp $< $(PROGRAM).new && mv $(PROGRAM).new $(PROGRAM); }

$(call object,$(SHARED) $(TESTS)): EXTRA = $(CMOCKA_CFLAGS)
$(call binary,$(TESTS)): $(OBJ)/tests/%: $(OBJ)/tests/%.o $(call object,$(SHARED) $(ROOM) $(PAGE))
	$(call say,LINK,$@) $(CC) $(ALL_CFLAGS) $^ -o $@ $(CMOCKA_LIBS) $(LIBS)

# cuda_backend.cu without a GPU: the C++ compiler and tests/cuda_on_cpu.h take nvcc's place. Each program twice: as it is,
# and with the checks that the runtime makes of the compiler's calls.
CXX_EMULATED = $(CXX) -std=c++17 -g -Wall -Wextra $(strip $(WERROR)) -Wno-unknown-pragmas -Wno-missing-field-initializers -fno-strict-aliasing -ffp-contract=off \
               $(shell grep -qsw fma /proc/cpuinfo && echo -mfma) -I.
CUDA_TESTS := $(addprefix $(OBJ)/cuda/,plain/test_cuda plain/test_vectors checked/test_cuda checked/planted)
CUDA_ROOM := $(filter-out $(OBJ)/cli/% $(OBJ)/lab/%,$(call object,$(SHARED) $(ROOM)))
$(OBJ)/cuda/runtime.o: tests/cuda_on_cpu.cpp tests/cuda_on_cpu.h $(OBJ)/flags
	@mkdir -p $(@D)
	$(call say,CXX,$<) $(CXX_EMULATED) -O2 -c $< -o $@
$(OBJ)/cuda/plain/%.o: %.cu cuda_backend.h ddpm.h tests/cuda_on_cpu.h $(OBJ)/flags
	@mkdir -p $(@D)
	$(call say,CXX,$<) $(CXX_EMULATED) -O2 -x c++ -include tests/cuda_on_cpu.h -c $< -o $@
$(OBJ)/cuda/checked/%.o: %.cu cuda_backend.h ddpm.h tests/cuda_on_cpu.h $(OBJ)/flags
	@mkdir -p $(@D)
	$(call say,CXX,"$< (checked)") $(CXX_EMULATED) -O1 -fsanitize=thread,alignment -x c++ -include tests/cuda_on_cpu.h -c $< -o $@
$(OBJ)/cuda/tests/%.o: tests/%.c $(OBJ)/flags
	@mkdir -p $(@D)
	$(call say,CC,$<) $(CC) $(ALL_CFLAGS) $(CMOCKA_CFLAGS) -DDDPM_CUDA -MMD -MP -c $< -o $@
$(OBJ)/cuda/plain/test_cuda $(OBJ)/cuda/checked/test_cuda: $(OBJ)/cuda/tests/cuda/test_cuda.o $(CUDA_ROOM)
$(OBJ)/cuda/plain/test_vectors: $(OBJ)/cuda/tests/test_vectors.o $(CUDA_ROOM)
$(OBJ)/cuda/plain/launches: $(OBJ)/cuda/tests/cuda/launches.o $(call object,ddpm_impl.c comm/comm.c comm/reducer.c)
$(OBJ)/cuda/plain/test_cuda $(OBJ)/cuda/plain/test_vectors $(OBJ)/cuda/plain/launches: $(OBJ)/cuda/plain/cuda_backend.o
$(OBJ)/cuda/checked/test_cuda: $(OBJ)/cuda/checked/cuda_backend.o
$(OBJ)/cuda/checked/planted: $(OBJ)/cuda/checked/tests/cuda/planted.o
$(CUDA_TESTS) $(OBJ)/cuda/plain/launches: $(OBJ)/cuda/runtime.o
$(OBJ)/cuda/bf16_curve: $(OBJ)/cuda/tests/cuda/bf16_curve.o $(call object,$(ROOM) $(PAGE))
	$(call say,LINK,$@) $(CC) $(ALL_CFLAGS) $^ -o $@ $(LIBS)
$(CUDA_TESTS) $(OBJ)/cuda/plain/launches:
	$(call say,LINK,$@) $(CXX) -pthread $(OPENMP) $(filter %.o,$^) -o $@ $(CMOCKA_LIBS) $(LIBS)

# Fuzz targets have their own main, which replays and mutates stored inputs, unless libFuzzer brings one.
FUZZ_MAIN := $(if $(filter fuzz,$(VARIANT)),-fsanitize=fuzzer,-DFUZZ_STANDALONE)
$(call object,$(FUZZ)): EXTRA = $(filter -D%,$(FUZZ_MAIN))
$(call binary,$(FUZZ)): $(OBJ)/tests/fuzz/%: $(OBJ)/tests/fuzz/%.o $(call object,$(ROOM) $(PAGE))
	$(call say,LINK,$@) $(CC) $(ALL_CFLAGS) $(filter -f%,$(FUZZ_MAIN)) $^ -o $@ $(LIBS)

-include $(patsubst %.c,$(OBJ)/%.d,$(MAIN) $(ROOM) $(SHARED) $(TESTS) $(FUZZ))

# ---- targets -----------------------------------------------------------------------------------------------------
all: program ## builds ./ddpm (the default)

mini: program ## makes the bundled model, data/mini, anew: data, evaluators, training, score (days; it can be stopped)
	@scripts/mini.sh

sweep: program ## accuracy and seconds a picture of every sampler, number of steps and guidance, with data/mini (hours)
	@scripts/sweep.sh

guidance: program ## accuracy over guidance 0 to 7, by the judge and by the guide itself, with data/mini (half an hour)
	@scripts/guidance.sh

experiment: program ## trains with T = 500, 1000, 2000 from three seeds each: loss curves and accuracy (many hours)
	@scripts/experiment.sh

readme: program ## the pictures, outputs and figures of README.md, made anew (minutes)
	@MAKE='$(MAKE)' scripts/readme.sh

demo: program ## draws with the bundled model, scores it, writes a report: in under two minutes
	@scripts/demo.sh

cuda: ## builds ./ddpm with the CUDA backend, for this machine's GPU if it has one
	@command -v nvcc > /dev/null || [ -x /usr/local/cuda/bin/nvcc ] || [ -x /opt/cuda/bin/nvcc ] || { \
	 printf '%s\n' 'make cuda: nvcc was not found' '      hint: CUDA 12 or 13 from https://developer.nvidia.com/cuda-downloads, or the package' \
	 '            nvidia-cuda-toolkit; then nvcc in PATH or in /usr/local/cuda/bin. Without it: make, and --backend cpu' >&2; exit 1; }
	+@$(MAKE) --no-print-directory CUDA=yes program

mpi: ## builds ./ddpm with MPI: mpirun -np 4 ./ddpm train ... (OpenMPI; with CUDA=yes NCCL under it on GPUs)
	+@$(MAKE) --no-print-directory MPI=yes program

cuda-report: $(OBJ)/cuda/plain/launches ## docs/CUDA.md: registers, occupancy, opcodes and bounds, from the compiler
	@rm -f $(OBJ)/cuda/noted; CUDA_ON_CPU_LAUNCHES=$(OBJ)/cuda/noted $< 128
	@scripts/cuda_report.py $(OBJ)/cuda/noted 128 > $(OBJ)/cuda/CUDA.md && mv $(OBJ)/cuda/CUDA.md docs/CUDA.md

bf16: $(OBJ)/cuda/bf16_curve ## docs/bf16.png: the small model's loss with float32 and with bf16 products, 500 steps (an hour)
	@$< 500 4 $(OBJ)/cuda/bf16.csv $(OBJ)/cuda/bf16.png && mv $(OBJ)/cuda/bf16.csv $(OBJ)/cuda/bf16.png docs

test: ## every check that is fast: unit tests, plain and under sanitizers, fuzz inputs, C11 and C++17, gcc and clang
	+@scripts/test.sh

check-long: ## the slow checks: libFuzzer, races, valgrind, planted gradient errors
	+@scripts/check_long.sh

lint: flags ## warnings, clang-tidy, cppcheck, clang-format, who includes whom, the length of Part I
	+@scripts/lint.sh $(OBJ)/flags

bench: program ## GFLOP/s of every operation and whole step beside the machine's measured peak
	$(PROGRAM) bench

bench-torch: ## the same work in PyTorch and here, in turn, as ratios (in build/venv, or PYTHON=...)
	+@PYTHON='$(strip $(PYTHON))' scripts/parity.sh tests/parity/bench_torch.py
parity: ## compares with torch and diffusers (in build/venv, or PYTHON=...) and makes the test vectors anew
	+@PYTHON='$(strip $(PYTHON))' scripts/parity.sh

help: ## this text
	@echo 'make TARGET [VARIABLE=value]...'
	@echo
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  \1~\2/p' Makefile | awk -F '~' '{ printf "%-14s %s\n", $$1, $$2 }'
	@echo
	@sed -n 's/^\([A-Z_]*\) *?= *\([^#]*\)# *\(.*\)/  \1=\2~\3/p' Makefile | awk -F '~' '{ printf "%-18s %s\n", $$1, $$2 }'
	@sed -n 's/^# Also: /  /p' Makefile

clean: ## removes what was built (not build/deps and build/venv, which were downloaded)
	@[ ! -d $(BUILD) ] || find $(BUILD) -mindepth 1 -maxdepth 1 ! -name deps ! -name venv -exec rm -rf {} +
	@rm -f ddpm

# For the scripts above: the test programs (one of them runs ddpm), those on the emulated GPU, the fuzz programs, every object.
tests: $(call binary,$(TESTS)) $(OBJ)/ddpm
cuda-tests: $(CUDA_TESTS)
fuzzers: $(call binary,$(FUZZ))
objects: $(call object,$(MAIN) $(ROOM) $(SHARED) $(TESTS) $(FUZZ))
flags: $(OBJ)/flags
