# What the generator writes does not depend on the compiler that it was built by: C leaves open in which order arguments are worked out, and
# where each of two makes an instruction, two compilers number them differently.
bats_require_minimum_version 1.5.0

setup() { cd "$BATS_TEST_TMPDIR" && unset RAX_DATA RAX_NO_JIT RAX_NUM_THREADS RAX_ISA RAX_PRODUCTS MAKEFLAGS MAKELEVEL MFLAGS; }

# dump PROGRAM FOLDER ARGUMENT...: the LLVM IR of two steps, with functions by number: their names are made with the build's identity
dump() {
    local program=$1 folder=$2
    shift 2
    (cd "$BATS_TEST_DIRNAME/fixtures/golden/odd-widths" &&
     "$program" train config.json --out_dir="$BATS_TEST_TMPDIR/out" --max_iters=1 --eval_interval=0 --dropout=0.1 --cache-dir= --dump-ir="$folder" "$@") >log 2>&1
    for names in "$folder"/*/*.functions; do
        awk '$1 == "function" { print "s/" $3 "/function_" $2 "/g" }' "$names" >rename
        sed -i -f rename "${names%/*}"/*.ll
        rm -f "${names%/*}"/*.s "${names%/*}"/*.opt.ll "$names"
    done
}

@test "gcc and clang build generators of the same code" {
    other=clang
    ! readelf -p .comment "$RAX_BIN" | grep -q clang || other=gcc
    command -v $other readelf >/dev/null || skip "there is no $other"
    ! ldd "$RAX_BIN" | grep -qE 'libasan|libtsan' || skip "built with a sanitizer"
    make -s -C "$BATS_TEST_DIRNAME/.." -j2 CC=$other CFLAGS=-O0 SANITIZE= BUILD="$PWD/build" "$PWD/build/rax" >log 2>&1
    for dtype in fp32 bf16; do
        dump "$RAX_BIN" "$PWD/one/$dtype" --dtype=$dtype
        dump "$PWD/build/rax" "$PWD/other/$dtype" --dtype=$dtype
    done
    [ "$(find one -name '*.ll' | wc -l)" -gt 4 ]
    diff -r one other >differences || { head -20 differences; false; }
}
