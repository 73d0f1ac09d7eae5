# RAX: `make deps` installs what the build needs, `make` builds build/rax, `make check` runs every test, `make check-cuda` those of the CUDA backend on a GPU,
# `make asan` and `make tsan` the same tests under sanitizers, `make fuzz` builds fuzz targets, `make shakespeare` trains a small GPT.

# -- settings ----------------------------------------------------------------------------------------------------------
# LLVM 15 to 22, 19 before the others, unless LLVM_CONFIG names one. An llvm-config without a number may be of any release. C11, gcc or clang.
LLVM_VERSIONS := 19 22 21 20 18 17 16 15
LLVM_CONFIG ?= $(firstword $(foreach v,$(LLVM_VERSIONS),$(shell command -v llvm-config-$(v))) $(shell command -v llvm-config))
# Asked where there is none yet: a command that says nothing, not an empty name, of which the shell complains.
LLVM_ASKED  := $(or $(LLVM_CONFIG),false)
LLVM_FOUND  := $(shell $(LLVM_ASKED) --version 2>/dev/null)
# LLVM, OpenBLAS and libcurl are opened when they are first needed, not linked: a start that needs none of them should not pay for
# them. LLVM is linked all the same where there is no shared library, or none of the architectures that llvm_library.c knows.
LLVM_FOLDER := $(shell $(LLVM_ASKED) --libdir 2>/dev/null)
LLVM_SONAME := $(if $(filter x86_64-% aarch64-%,$(shell $(CC) -dumpmachine 2>/dev/null)),$(shell \
                   objdump -p $$($(LLVM_ASKED) --link-shared --libfiles 2>/dev/null) 2>/dev/null | awk '$$1 == "SONAME" { print $$2 }'))
BUILD    ?= build
PACKAGES := libcjson libpcre2-8 libxxhash libcrypto
OPENED   := openblas libcurl
CFLAGS   ?= -O2 -g
SANITIZE ?=
# Nothing is compiled for the machine that builds: no -march here. What needs the host's vectors is generated at run time.
# -ffp-contract=off: a*b+c rounds twice or once by what the source says, whatever the compiler.
RAX_CFLAGS := -std=c11 -D_GNU_SOURCE -Wall -Wextra -Wno-missing-field-initializers -fno-math-errno -ffp-contract=off -pthread -I. -Iinclude \
              -MMD -MP $(SANITIZE) $(shell pkg-config --cflags $(PACKAGES) $(OPENED) 2>/dev/null) $(shell $(LLVM_ASKED) --cflags 2>/dev/null | tr ' ' '\n' | grep '^-I')
RAX_LIBS   := $(shell pkg-config --libs $(PACKAGES) 2>/dev/null) $(if $(LLVM_SONAME),,$(shell $(LLVM_ASKED) --ldflags --libs 2>/dev/null | tr '\n' ' ')) -lm -ldl -pthread

Q := $(if $(V),,@)

# -- sources by folder -------------------------------------------------------------------------------------------------
LIB_DIRS := base ir tracer backend_cpu backend_cuda
APP_DIRS := data nanogpt bench
LIB_SRC  := $(foreach d,$(LIB_DIRS) $(APP_DIRS),$(wildcard $(d)/*.c))
CLI_SRC  := $(wildcard cli/*.c)
LIB_OBJ  := $(LIB_SRC:%.c=$(BUILD)/%.o)
CLI_OBJ  := $(CLI_SRC:%.c=$(BUILD)/%.o)
TEST_SRC := $(wildcard tests/*.c)
TEST_BIN := $(TEST_SRC:tests/%.c=$(BUILD)/tests/%)
PTX_OBJ  := $(patsubst %.c,$(BUILD)/%.o,$(wildcard tests/ptx/*.c))
EXAMPLE_BIN := $(patsubst examples/%.c,$(BUILD)/examples/%,$(wildcard examples/*.c))

# -- rules -------------------------------------------------------------------------------------------------------------
all: $(if $(CLI_SRC),$(BUILD)/rax) $(EXAMPLE_BIN)

# Said before the first file is compiled, not by the linker after the last. What was compiled for another release is compiled anew.
$(BUILD)/llvm-version: llvm
	$(if $(filter $(LLVM_VERSIONS),$(firstword $(subst ., ,$(LLVM_FOUND)))),,$(error LLVM 15 to 22 is needed and \
	    $(or $(LLVM_CONFIG),no llvm-config) $(if $(LLVM_FOUND),is of $(LLVM_FOUND),was found): make deps installs it))
	@mkdir -p $(@D)
	@echo "$(LLVM_FOUND)" | cmp -s - $@ || echo "$(LLVM_FOUND)" > $@

$(BUILD)/%.o: %.c $(BUILD)/llvm-version
	@mkdir -p $(@D)
	$(if $(V),,@echo "  CC $<")
	$(Q)$(CC) $(RAX_CFLAGS) $(CFLAGS) -c $< -o $@

$(BUILD)/backend_cpu/llvm_library.o: RAX_CFLAGS += $(if $(LLVM_SONAME),-DLLVM_SONAME='"$(LLVM_SONAME)"' -DLLVM_FOLDER='"$(LLVM_FOLDER)"')

# CUDA C is part of the program as text.
$(BUILD)/backend_cuda/requests.o: $(wildcard backend_cuda/device/*.cu)

$(BUILD)/librax.a: $(LIB_OBJ)
	$(Q)rm -f $@ && ar rcs $@ $^

$(BUILD)/rax: $(CLI_OBJ) $(BUILD)/librax.a
	$(if $(V),,@echo "  LD $@")
	$(Q)$(CC) $(SANITIZE) $(CFLAGS) $(CLI_OBJ) $(BUILD)/librax.a $(RAX_LIBS) -o $@

$(BUILD)/tests/%: tests/%.c $(BUILD)/tests/amx/emulator.o $(PTX_OBJ) $(BUILD)/librax.a
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LD $@")
	$(Q)$(CC) $(RAX_CFLAGS) $(CFLAGS) $< $(BUILD)/tests/amx/emulator.o $(PTX_OBJ) $(BUILD)/librax.a -lcmocka $(RAX_LIBS) -o $@

.SECONDARY: $(BUILD)/tests/amx/emulator.o $(PTX_OBJ)

# The program with the stand-in for a GPU, for tests/cuda.bats.
$(BUILD)/tests/rax-standin: tests/standin/main.c cli/main.c $(CLI_OBJ) $(PTX_OBJ) $(BUILD)/librax.a
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LD $@")
	$(Q)$(CC) $(RAX_CFLAGS) $(CFLAGS) -Dmain=rax_main -c cli/main.c -o $(BUILD)/tests/rax_main.o
	$(Q)$(CC) $(RAX_CFLAGS) $(CFLAGS) $< $(BUILD)/tests/rax_main.o $(filter-out $(BUILD)/cli/main.o,$(CLI_OBJ)) $(PTX_OBJ) $(BUILD)/librax.a -lcmocka $(RAX_LIBS) -o $@

$(BUILD)/examples/%: examples/%.c $(BUILD)/librax.a
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LD $@")
	$(Q)$(CC) $(RAX_CFLAGS) $(CFLAGS) $< $(BUILD)/librax.a $(RAX_LIBS) -o $@

# -- tests -------------------------------------------------------------------------------------------------------------
check: all $(TEST_BIN) $(BUILD)/tests/rax-standin
	$(Q)BUILD=$(BUILD) tests/run

# The CUDA tests on this machine's GPU and libraries in place of the stand-in, and once more under compute-sanitizer where it is installed.
CUDA_TESTS := $(patsubst tests/%.c,%,$(wildcard tests/test_cuda_*.c))
SANITIZER  := compute-sanitizer --error-exitcode 9 --launch-timeout 0
check-cuda: all $(CUDA_TESTS:%=$(BUILD)/tests/%)
	$(Q)if why=$$($(BUILD)/rax info --device=cuda 2>&1 >/dev/null); then \
	    BUILD=$(BUILD) RAX_TEST_CUDA=device tests/run $(CUDA_TESTS) && \
	    if command -v compute-sanitizer >/dev/null; then \
	        BUILD=$(BUILD) RAX_TEST_CUDA=device RAX_TEST_UNDER="$(SANITIZER)" tests/run $(CUDA_TESTS); \
	    else echo "check-cuda: compute-sanitizer is not installed"; fi; \
	else echo "check-cuda: nothing was run: $$why"; fi

# -- sanitizers: the same tests, in build folders of their own ---------------------------------------------------------
asan:
	$(Q)$(MAKE) BUILD=build-asan SANITIZE="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer" check

# setarch -R: some releases of the thread sanitizer know only the addresses of a process that is not randomised
tsan:
	$(Q)$(shell setarch -R true 2>/dev/null && echo setarch -R) $(MAKE) BUILD=build-tsan SANITIZE="-fsanitize=thread -fno-omit-frame-pointer" check

# -- fuzzing: readers of text and of files, with clang's libFuzzer, in a build folder of their own -------------------------
# make fuzz && build-fuzz/fuzz/graph_text -max_total_time=60 EXAMPLES tests/ir      what is found there, and examples to begin with
fuzz:
	$(Q)$(MAKE) CC=clang BUILD=build-fuzz SANITIZE="-fsanitize=address,undefined,fuzzer-no-link -fno-sanitize-recover=undefined" CFLAGS="-O1 -g" fuzz_targets

fuzz_targets: $(patsubst tests/fuzz/%.c,$(BUILD)/fuzz/%,$(wildcard tests/fuzz/*.c))

$(BUILD)/fuzz/%: tests/fuzz/%.c $(BUILD)/librax.a
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LD $@")
	$(Q)$(CC) $(RAX_CFLAGS) $(CFLAGS) -fsanitize=fuzzer $< $(BUILD)/librax.a $(RAX_LIBS) -o $@

# -- from nothing to a trained model -----------------------------------------------------------------------------------
deps:
	$(Q)scripts/deps

# Makes of their own: what deps installs is found by settings that are read when a make begins.
shakespeare:
	$(Q)$(MAKE) deps
	$(Q)$(MAKE) all
	$(Q)$(BUILD)/rax train configs/shakespeare.json

clean:
	$(Q)rm -rf build build-*

.PHONY: all llvm check check-cuda asan tsan fuzz fuzz_targets deps shakespeare clean
-include $(LIB_OBJ:.o=.d) $(CLI_OBJ:.o=.d) $(PTX_OBJ:.o=.d) $(TEST_BIN:=.d) $(BUILD)/tests/rax-standin.d $(wildcard $(BUILD)/fuzz/*.d)
