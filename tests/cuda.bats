# rax with --device cuda from outside, on the stand-in for a GPU: what is printed, and what goes from one device to the other.
bats_require_minimum_version 1.5.0

setup_file() {
    export RAX_TEST_SOURCE=$PWD ON_STANDIN=${RAX_BIN%/*}/tests/rax-standin
    [ -x "$ON_STANDIN" ] || return 0
    cd "$BATS_FILE_TMPDIR"
    export RAX_CACHE_DIR="$PWD/cache"
    unset RAX_DATA RAX_NO_JIT RAX_NUM_THREADS RAX_ISA RAX_CUDA_BLOCKING RAX_TF32
    for i in $(seq 300); do echo "line $i: the quick brown fox, and so on"; done >text
    "$RAX_BIN" prepare --tokenizer=char --out_dir=tokens text >/dev/null
    cat >config.json <<'JSON'
{ "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 12, "vocab_size": 40, "batch_size": 4, "max_iters": 8, "learning_rate": 1e-2,
  "min_lr": 1e-2, "warmup_iters": 0, "eval_interval": 4, "eval_iters": 2, "train_data": "tokens/train.bin", "val_data": "tokens/val.bin", "out_dir": "out" }
JSON
    "$RAX_BIN" train config.json >cpu.out 2>cpu.err
    "$ON_STANDIN" train config.json --device=cuda --out_dir=out-cuda --profile --trace=trace.json >cuda.out 2>cuda.err
}

setup() {
    [ -x "$ON_STANDIN" ] || skip "$ON_STANDIN is not built"
    cd "$BATS_FILE_TMPDIR"
}

# Iterations and evaluations, without their times.
lines() { sed -n '/^\(iter\|eval\) /s/, time .*//p' "$1"; }

@test "the same lines in the same order as on the CPU" {
    [ "$(lines cpu.out | wc -l)" -eq 11 ]
    diff <(lines cpu.out) <(lines cuda.out)
}

@test "a profile has the device's name, kernels, and a trace" {
    grep -q '^peak on stand-in: f32 [0-9]* GFLOP/s' cuda.out
    grep -qE '^train_step: 7 runs, [0-9.]+ ms each on stand-in, from the first launch to the last$' cuda.out
    grep -qE '^eval_step: 5 runs' cuda.out
    [ "$(sed -n '/^train_step: /,/^eval_step: /p' cuda.out | grep -c 'cublaslt')" -ge 3 ]
    grep -q '"device 0"' trace.json
    [ "$(grep -c '"ph": "X"' trace.json)" -gt 100 ]
}

@test "what was trained on one device is read by the other" {
    "$ON_STANDIN" eval out --device=cuda >a 2>err
    "$RAX_BIN" eval out >b 2>err
    diff a b
    "$ON_STANDIN" sample out-cuda --device=cuda --start="li" --max_new_tokens=40 --seed=1 >a 2>err
    "$RAX_BIN" sample out-cuda --start="li" --max_new_tokens=40 --seed=1 >b 2>err
    diff a b
}

@test "rax bench measures the device" {
    "$ON_STANDIN" bench softmax --device=cuda --workloads=nano --repeats=1 --sample_ms=0 >out.txt 2>err
    grep -q '^peak on stand-in: ' out.txt
    grep -qE '^softmax/nano/forward +[0-9.]+ ms' out.txt
    "$ON_STANDIN" bench peak --device=cuda --json >out.json 2>err
    grep -q '"device":[[:space:]]*"stand-in"' out.json
}

@test "without a GPU one line says what is missing" {
    "$RAX_BIN" info --device=cuda >out.txt 2>err && skip "there is a GPU"
    for command in "eval out" "sample out" "train config.json --out_dir=none" "bench peak"; do
        local status=0
        "$RAX_BIN" $command --device=cuda >out.txt 2>err || status=$?
        cat err
        [ "$status" -eq 1 ] && [ "$(wc -l <err)" -eq 1 ] && grep -q '^rax: device cuda: ' err && [ ! -s out.txt ]
    done
    [ ! -e none ]
}

@test "a configuration's own step is measured, and tuned" {
    "$ON_STANDIN" bench --config config.json --device=cuda --repeats=1 --sample_ms=0 >out.txt 2>err
    grep -qE '^step/config f32 +[0-9.]+ ' out.txt
    [ "$(ls cache/objects | grep -c '\.table$')" -eq 0 ]
    "$ON_STANDIN" bench --config config.json --device=cuda --repeats=1 --sample_ms=0 --tune >out.txt 2>err
    [ "$(cat cache/objects/*.table | wc -l)" -gt 5 ]
    "$ON_STANDIN" train config.json --device=cuda --out_dir=out-tuned --max_iters=2 >tuned.out 2>err
    grep -q '"tuned":[[:space:]]*"xxh3:' out-tuned/latest/state.json
    diff <(lines cuda.out | head -3) <(lines tuned.out | head -3)
}

@test "a run that goes on with other algorithms than it was begun with is warned" {
    "$ON_STANDIN" train config.json --device=cuda --out_dir=out-tuned --max_iters=3 --init_from=resume >out.txt 2>err
    [ "$(grep -c warning err)" -eq 0 ]
    rm cache/objects/*.table
    "$ON_STANDIN" train config.json --device=cuda --out_dir=out-tuned --max_iters=4 --init_from=resume >out.txt 2>err
    grep -qE '^rax: warning: out-tuned/ckpt-0*3: the run goes on with other algorithms .*\(xxh3:[0-9a-f]*, now not tuned\)' err
    "$ON_STANDIN" train config.json --device=cuda --out_dir=out-tuned --max_iters=5 --init_from=resume >out.txt 2>err
    [ "$(grep -c warning err)" -eq 0 ]
}

@test "--tf32 and RAX_TF32 round the operands of products in f32" {
    "$ON_STANDIN" train config.json --device=cuda --out_dir=out-tf32 --max_iters=3 --tf32 >flag.out 2>err
    RAX_TF32=1 "$ON_STANDIN" train config.json --device=cuda --out_dir=out-tf32-2 --max_iters=3 >variable.out 2>err
    cmp out-tf32/latest/model.safetensors out-tf32-2/latest/model.safetensors
    RAX_TF32=0 "$ON_STANDIN" train config.json --device=cuda --out_dir=plain --max_iters=3 >plain.out 2>err
    run -1 cmp -s out-tf32/latest/model.safetensors plain/latest/model.safetensors
    "$ON_STANDIN" train config.json --device=cuda --out_dir=out-tf32-2 --max_iters=4 --init_from=resume --tf32 >out.txt 2>err
    [ "$(grep -c warning err)" -eq 0 ]
    "$ON_STANDIN" train config.json --device=cuda --out_dir=out-tf32-2 --max_iters=5 --init_from=resume >out.txt 2>err
    grep -qE '^rax: warning: out-tf32-2/ckpt-0*4: the run goes on with other algorithms .*\(tf32.*, now ' err
}

@test "a CPU has nothing to tune" {
    local status=0
    "$RAX_BIN" bench peak --tune >out.txt 2>err || status=$?
    [ "$status" -eq 2 ] && grep -q '^rax: tune: cpu has nothing to choose from$' err
}

@test "rax info names the card and the libraries" {
    "$ON_STANDIN" info --device=cuda --tf32 >out.txt 2>err
    grep -qE '^cuda +stand-in, compute capability 9\.0, ' out.txt
    grep -qE '^driver +CUDA 13\.0$' out.txt
    grep -qE '^compiler +NVRTC of CUDA 13\.0 for sm_90$' out.txt
    grep -qE '^products +cuBLASLt 130000, f32 by TF32$' out.txt
}

@test "an unknown device is a mistake" {
    local status=0
    "$RAX_BIN" eval out --device=gpu >out.txt 2>err || status=$?
    [ "$status" -eq 2 ] && grep -q 'device: expected cpu or cuda, got "gpu"' err
}
