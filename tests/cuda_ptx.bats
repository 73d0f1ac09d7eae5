# The tests of the CUDA backend once more, with what NVRTC makes of each kernel in place of the kernel's text: its PTX, executed by the machine in tests/ptx, which
# finds what a GPU would not notice (races, what nobody wrote, lanes that are not together).
bats_require_minimum_version 1.5.0

# All of them side by side, each to a file of its name, with its status in another. A cache of their own: what others find in theirs is no PTX.
setup_file() {
    export TESTS=${RAX_BIN%/*}/tests RAX_TEST_CUDA=ptx RAX_CACHE_DIR=$BATS_FILE_TMPDIR/cache
    for run in 90:backend 80:backend 75:backend 90:loops 90:trainer 90:golden 80:golden 90:runtime; do echo $run; done |
        xargs -P "$(nproc)" -I{} bash -c 'run={}; RAX_TEST_ARCH=${run%:*} "$TESTS/test_cuda_${run#*:}" >"$BATS_FILE_TMPDIR/$run" 2>&1; echo $? >"$BATS_FILE_TMPDIR/$run.status"'
}

# passed ARCHITECTURE:TEST
passed() {
    local out=$BATS_FILE_TMPDIR/$1 status
    status=$(cat "$out.status")
    [ "$status" -ne 77 ] || skip "$(sed -n 's/.*# skipped: //p' "$out")"
    [ "$status" -eq 0 ] || grep -v '^iter\|^eval' "$out"
    return "$status"
}

@test "loops, sm_90" { passed 90:loops; }
@test "ops, programs, attention and products, sm_90" { passed 90:backend; }
@test "ops, programs, attention and products, sm_80" { passed 80:backend; }
@test "ops, programs, attention and products, sm_75" { passed 75:backend; }
@test "golden runs, sm_90" { passed 90:golden; }
@test "golden runs, sm_80" { passed 80:golden; }
@test "training runs, sm_90" { passed 90:trainer; }
@test "the runtime, sm_90" { passed 90:runtime; }
