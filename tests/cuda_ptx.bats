# The tests of the CUDA backend once more, with what NVRTC makes of each kernel in place of the kernel's text: its PTX, executed by the machine in tests/ptx, which
# finds what a GPU would not notice (races, what nobody wrote, lanes that are not together).
bats_require_minimum_version 1.5.0

# A cache of its own: what others find in theirs is no PTX.
setup_file() { export TESTS=${RAX_BIN%/*}/tests RAX_TEST_CUDA=ptx RAX_CACHE_DIR=$BATS_FILE_TMPDIR/cache; }

# run_on ARCHITECTURE TEST
run_on() {
    [ -x "$TESTS/$2" ] || skip "$2 is not built"
    local status=0
    RAX_TEST_ARCH=$1 "$TESTS/$2" >"$BATS_TEST_TMPDIR/out" 2>&1 || status=$?
    [ $status -ne 77 ] || skip "$(sed -n 's/.*# skipped: //p' "$BATS_TEST_TMPDIR/out")"
    [ $status -eq 0 ] || grep -v '^iter\|^eval' "$BATS_TEST_TMPDIR/out"
    return $status
}

@test "loops, sm_90" { run_on 90 test_cuda_loops; }
@test "ops, programs, attention and products, sm_90" { run_on 90 test_cuda_backend; }
@test "ops, programs, attention and products, sm_80" { run_on 80 test_cuda_backend; }
@test "ops, programs, attention and products, sm_75" { run_on 75 test_cuda_backend; }
@test "golden runs, sm_90" { run_on 90 test_cuda_golden; }
@test "golden runs, sm_80" { run_on 80 test_cuda_golden; }
@test "training runs, sm_90" { run_on 90 test_cuda_trainer; }
@test "the runtime, sm_90" { run_on 90 test_cuda_runtime; }
