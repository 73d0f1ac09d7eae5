# rax sample: the same seed, the same text; what is printed, and one line for each mistake.
bats_require_minimum_version 1.5.0

setup_file() {
    cd "$BATS_FILE_TMPDIR"
    export RAX_CACHE_DIR="$PWD/cache"
    unset RAX_DATA RAX_NO_JIT RAX_NUM_THREADS RAX_ISA
    for i in $(seq 300); do echo "line $i: the quick brown fox, and so on"; done >text
    "$RAX_BIN" prepare --tokenizer=char --out_dir=tokens text >/dev/null
    cat >config.json <<'JSON'
{ "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 12, "vocab_size": 40, "batch_size": 4, "max_iters": 30, "learning_rate": 1e-2,
  "min_lr": 1e-2, "warmup_iters": 0, "eval_interval": 0, "train_data": "tokens/train.bin", "val_data": "tokens/val.bin", "out_dir": "out" }
JSON
    "$RAX_BIN" train config.json >train.out 2>train.err
}

setup() { cd "$BATS_FILE_TMPDIR"; }

fails() {
    local wanted=$1 text=$2 status=0
    shift 2
    "$RAX_BIN" "$@" >stdout 2>stderr || status=$?
    echo "rax $*: status $status"; cat stderr
    [ "$status" -eq "$wanted" ] && [ "$(wc -l <stderr)" -eq 1 ] && grep -qF -- "$text" stderr && [ ! -s stdout ]
}

@test "training ends with samples" {
    [ "$(grep -c '^iter' train.out)" -eq 30 ]
    [ "$(sed -n '/^iter 29/,$p' train.out | wc -c)" -gt 400 ]
}

@test "a text begins with its start and has as many tokens as asked for" {
    "$RAX_BIN" sample out --start="the fox" --max_new_tokens=90 --seed=1 >a 2>err
    [ "$(head -c 7 a)" = "the fox" ]
    [ "$(wc -c <a)" -eq $((7 + 90 + 1)) ]
}

@test "what is said of compiling stands before a text, not in it" {
    "$RAX_BIN" sample out --start="the fox" --max_new_tokens=20 --seed=1 >both 2>&1
    [ "$(grep -c '^\[RAX\]' both)" -eq 2 ]
    [ "$(grep -c '\[RAX\]' both)" -eq 2 ]
    [ "$(grep -v '^\[RAX\]' both | head -c 7)" = "the fox" ]
}

@test "seed and spelling" {
    "$RAX_BIN" sample out --start="li" --max_new_tokens=60 --temperature=0.8 --top_k=20 --seed=1 >a 2>err
    "$RAX_BIN" sample out --start="li" --max-new-tokens=60 --temperature=0.8 --top-k=20 --seed=1 >b 2>err
    "$RAX_BIN" sample out --start="li" --max-new-tokens=60 --temperature=0.8 --top-k=20 --seed=2 >c 2>err
    cmp a b
    ! cmp -s a c
    "$RAX_BIN" sample out --start="li" --max_new_tokens=60 --temperature=0 --seed=1 >a 2>err
    "$RAX_BIN" sample out --start="li" --max_new_tokens=60 --top_k=1 --seed=2 >b 2>err
    cmp a b
}

@test "the interpreter draws the same text" {
    "$RAX_BIN" sample out --start="quick" --max_new_tokens=60 --seed=4 >a 2>err
    "$RAX_BIN" sample out --start="quick" --max_new_tokens=60 --seed=4 --no-jit >b 2>err
    cmp a b
}

@test "a tokenizer without a newline has texts that begin with another token" {
    mkdir -p lines && cd lines
    seq -s ' ' 400 | tr -d '\n' >text
    "$RAX_BIN" prepare --tokenizer=char --out_dir=tokens text >/dev/null
    "$RAX_BIN" train ../config.json --train_data=tokens/train.bin --val_data=tokens/val.bin --out_dir=out --max_iters=2 >a 2>err
    [ "$(sed -n '/^iter 1/,$p' a | wc -c)" -gt 400 ]
    "$RAX_BIN" sample out --max_new_tokens=20 >a 2>err
    [ "$(wc -c <a)" -eq 22 ]
}

@test "several texts" {
    "$RAX_BIN" sample out --max_new_tokens=20 --num_samples=3 --seed=1 >a 2>err
    [ "$(grep -c '^---------------$' a)" -eq 2 ]
}

@test "two programs are compiled, whatever the length of the prompt" {
    for start in a "the quick brown fox, and so on and so on"; do
        "$RAX_BIN" sample out --start="$start" --max_new_tokens=30 --num_samples=2 >a 2>err
        cat err
        [ "$(grep -c JIT-compiling err)" -eq 2 ]
    done
}

@test "what cannot be sampled" {
    fails 2 "none" sample none
    fails 2 "expected OUT_DIR" sample
    fails 2 "--temperature" sample out --temperature=-1
    fails 2 "--top_k" sample out --top_k=some
    fails 2 "--start" sample out --start=""
    fails 2 "character" sample out --start="§"
    "$RAX_BIN" train config.json --out_dir=untold --train_data="$BATS_TEST_DIRNAME/fixtures/golden/odd-widths/tokens.bin" --max_iters=1 >/dev/null 2>&1
    fails 2 "tokenizer.json" sample untold
}

@test "neither the token files nor the text are needed, the tokenizer is" {
    cp -r tokens kept
    "$RAX_BIN" sample out --max_new_tokens=20 --seed=1 >expected 2>err
    rm tokens/train.bin tokens/val.bin
    "$RAX_BIN" sample out --max_new_tokens=20 --seed=1 >got 2>err || true
    echo '{' >tokens/tokenizer.json
    fails 2 "tokens/tokenizer.json: is not valid JSON" sample out || { rm -r tokens; mv kept tokens; false; }
    rm -r tokens
    mv kept tokens
    cmp got expected
}

@test "weights that are damaged or absent" {
    cp -r out hurt
    printf x | dd of=hurt/latest/model.safetensors bs=1 seek=4000 conv=notrunc 2>/dev/null
    fails 2 "hurt/ckpt-000030/model.safetensors: is damaged" sample hurt
    rm hurt/latest/model.safetensors
    fails 2 "hurt/ckpt-000030/model.safetensors: cannot be read: No such file" sample hurt
    rm -r hurt/ckpt-000030
    fails 2 "hurt/latest: names a checkpoint that is not there" sample hurt
    rm hurt/latest
    fails 2 "hurt: holds no checkpoint" sample hurt
}

@test "a signal ends a text with 130 or 143" {
    for signal in INT:130 TERM:143; do
        # a background job of a shell that is not interactive ignores SIGINT; env gives it back
        env --default-signal=INT "$RAX_BIN" sample out --max_new_tokens=1000000 >text.out 2>err &
        pid=$!
        for _ in $(seq 600); do [ -s text.out ] && break; sleep 0.05; done
        kill -s "${signal%:*}" $pid
        status=0
        wait $pid || status=$?
        [ $status -eq "${signal#*:}" ] && [ -s text.out ] && ! grep -v '^\[RAX\]' err
    done
}
