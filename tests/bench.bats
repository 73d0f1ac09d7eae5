# rax bench from outside: what it measures, its JSON, the comparison with an earlier run. No time is held against anything.
bats_require_minimum_version 1.5.0

setup() { cd "$BATS_TEST_TMPDIR" && export RAX_CACHE_DIR="$PWD/cache" && unset RAX_DATA RAX_NO_JIT RAX_NUM_THREADS RAX_ISA RAX_PRODUCTS; }

bench() { "$RAX_BIN" bench "$@" --workloads=nano --repeats=1 --sample_ms=0; }
fails() {
    local status=0
    "$RAX_BIN" bench "${@:2}" >stdout 2>stderr || status=$?
    cat stderr
    [ "$status" -eq 2 ] && [ "$(wc -l <stderr)" -eq 1 ] && grep -qF -- "$1" stderr && [ ! -s stdout ]
}

@test "every group has rows, under a line on the machine" {
    groups=$("$RAX_BIN" bench --help | sed -n '/Names:/,/^options/s/^  \([a-z_]*\) .*/\1/p' | grep -vxE 'peak|compile')    # compile: slow under sanitizers
    bench $groups >stdout
    cat stdout
    head -1 stdout | grep -qE '^peak on [0-9]+ threads?: f32 [0-9]+ GFLOP/s, bf16 [0-9]+ GFLOP/s, memory [0-9.]+ GB/s read, [0-9.]+ GB/s updated in place$'
    for group in $groups; do grep -qE "^$group/[^ ]+.* [0-9.]+ (us|ms|s) +[0-9.]+%" stdout; done
}

@test "products are measured by each way, in three directions" {
    bench matmul --dtypes=f32 >stdout
    [ "$(grep -c '^matmul/nano/.* f32 generated ' stdout)" -eq 15 ]
    [ "$(grep -c '^matmul/nano/.* f32 openblas ' stdout)" -eq 15 ]
    ! grep -q bf16' ' <(grep ^matmul stdout)
    bench matmul --dtypes=bf16 >stdout
    [ "$(grep -c '^matmul/nano/.* bf16 generated ' stdout)" -eq 15 ]
    [ "$(grep -c '^matmul' stdout)" -eq 15 ]
}

@test "a name chooses, peak is the machine alone" {
    bench peak >stdout
    [ "$(grep -c / <(grep -E '^[a-z_]+/' stdout))" -eq 0 ]
    bench softmax gelu >stdout
    [ "$(grep -oE '^[a-z_]+/' stdout | sort -u | tr '\n' ' ')" = "gelu/ softmax/ " ]
}

@test "--json is JSON, and --compare reads it" {
    bench gelu dispatch --json >old.json
    command -v python3 >/dev/null && python3 - <<'END'
import json
run = json.load(open("old.json"))
assert run["peak"]["threads"] >= 1 and run["peak"]["f32_gflops"] > 0 and "cpu" in run["machine"]
assert [r["name"] for r in run["results"]] == ["gelu/nano/forward", "gelu/nano/backward", "dispatch/148 x 3 tensors", "dispatch/148 x 3 tensors, cold"]
assert all(r["low_ms"] <= r["median_ms"] <= r["high_ms"] for r in run["results"])
assert run["results"][0]["bound"] == "memory" and run["results"][0]["gbs"] > 0
END
    bench gelu softmax --compare=old.json >stdout
    cat stdout
    grep -q ' before ' stdout
    [ "$(grep -cE '^gelu/.* [0-9.]+x$' stdout)" -eq 2 ]
    ! grep -qE '^softmax/.*x$' stdout
}

@test "mistakes are one line" {
    fails "NAME: there is no 'matmuls'; the nearest is matmul" matmuls
    fails "--workloads: there is no 'gpt'; the nearest is gpt2" --workloads=gpt
    fails "--dtypes: there is no 'fp32'; the nearest is f32" --dtypes=fp32
    echo '{}' >empty.json
    fails "empty.json: is not what rax bench --json prints" gelu --compare=empty.json
    fails "the interpreter" gelu --no-jit
}

@test "compare.py without peers: steps, starts, its JSON" {
    command -v python3 >/dev/null || skip "there is no python3"
    python3 -B "$BATS_TEST_DIRNAME/../bench/compare.py" steps starts --workloads nano --peers= --rounds 1 --steps 2 --rax "$RAX_BIN" --json rows.json >stdout
    cat stdout
    grep -qE '^nano +fp32 +rax +[0-9.]+ +[0-9.]+ +[0-9.]+ +[0-9.]+% +[0-9]+ *$' stdout
    grep -qE '^nano +fp32 +rax +[0-9.]+ +[0-9.]+$' stdout
    python3 - <<'END'
import json
rows = json.load(open("rows.json"))
step, start = rows["steps"][0], rows["starts"][0]
assert step["step_ms"] > 0 and step["peak_mb"] > 1 and step["peak_gflops"] > 0 and start["cold_ms"] > 0 and start["warm_ms"] > 0
END
    ! python3 -B "$BATS_TEST_DIRNAME/../bench/compare.py" step 2>stderr
    grep -q "step: expected one of steps, products, starts" stderr
}

@test "the scripts read the same workloads" {
    command -v python3 >/dev/null || skip "there is no python3"
    names=$(cd "$BATS_TEST_DIRNAME/../bench" && python3 -B -c 'from workloads import WORKLOADS; print(*WORKLOADS, sep=",")')
    grep -q "whose shapes ($names)" <("$RAX_BIN" bench --help)
}
