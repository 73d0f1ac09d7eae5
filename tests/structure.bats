#!/usr/bin/env bats
# What docs/design.md says of folders: who may include whom, and who knows what.

setup() { cd "$BATS_TEST_DIRNAME/.."; }

# included FOLDER: the project's headers that its files include, without those of the pattern after it
foreign() { grep -hoE '^ *# *include "[^"]+"' "$1"/*.[ch] | sed -E 's/.*"([^"]+)"/\1/' | sort -u | grep -vE "$2" || true; }

@test "the compiler does not know what it compiles" {
    run grep -rli gpt ir tracer backend_* base include
    [ -z "$output" ] || { echo "$output"; false; }
}

@test "base includes nothing but base" {
    run foreign base '^base/'
    [ -z "$output" ] || { echo "$output"; false; }
}

@test "ir includes nothing but ir and base" {
    run foreign ir '^(ir|base)/'
    [ -z "$output" ] || { echo "$output"; false; }
}

@test "tracer includes ir and base, and rax.h, which it implements" {
    run foreign tracer '^(tracer|ir|base)/|^rax\.h$|^backend_[a-z]+/backend\.h$'
    [ -z "$output" ] || { echo "$output"; false; }
}

@test "a backend includes itself, ir and base" {
    for backend in backend_*; do
        run foreign "$backend" "^($backend|ir|base)/"
        [ -z "$output" ] || { echo "$backend: $output"; false; }
    done
}

@test "nanogpt is a user of rax.h like any other" {
    run foreign nanogpt '^nanogpt/|^rax\.h$'
    [ -z "$output" ] || { echo "$output"; false; }
}

@test "data is a user of rax.h like any other" {
    run foreign data '^data/|^rax\.h$'
    [ -z "$output" ] || { echo "$output"; false; }
}

@test "bench is a user of rax.h and of the trainer's step" {
    run foreign bench '^bench/|^nanogpt/|^rax\.h$'
    [ -z "$output" ] || { echo "$output"; false; }
}

@test "LLVM is called where code is made, and nowhere else" {
    run bash -c "grep -l 'llvm-c' base/*.[ch] ir/*.[ch] tracer/*.[ch] data/*.[ch] nanogpt/*.[ch] cli/*.[ch] include/*.h"
    [ -z "$output" ] || { echo "$output"; false; }
}

@test "every listed function of LLVM is one that is called" {
    for name in $(sed -n 's/^FUNCTION(\(LLVM[A-Z][A-Za-z0-9]*\))$/\1/p' backend_cpu/llvm_functions.def); do
        grep -qrE "\\b$name\\b" --include=*.c --include=*.h backend_cpu tests || { echo "$name"; false; }
    done
}

@test "names between files carry their folder's prefix" {
    build=${RAX_BIN%/rax}
    [ -d "$build" ] || skip "there is no build"
    run bash -c "for o in $build/base/*.o $build/ir/*.o $build/tracer/*.o $build/nanogpt/*.o $build/data/*.o $build/bench/*.o $build/backend_cpu/*.o $build/backend_cuda/*.o; do
        nm --defined-only -g \$o | awk -v o=\$o '{ print o, \$3 }'; done | grep -vE ' (base|ir|kl|ref|shape|vjp|decompose|rax|trace|gpt|data|bench|cpu|cuda)_|llvm_library.o LLVM|__(asan|odr_asan|tsan|start|stop)|DW\.|\.(0|cold)$'"
    [ -z "$output" ] || { echo "$output"; false; }
}
