# The program from outside: help, exit statuses, one line for a mistake.
bats_require_minimum_version 1.5.0

rax() { "$RAX_BIN" "$@"; }
setup() { cd "$BATS_TEST_TMPDIR" && export RAX_CACHE_DIR="$PWD/cache" && unset RAX_DATA RAX_NO_JIT RAX_NUM_THREADS RAX_ISA; }

# fails STATUS TEXT ARGUMENT...: exit status, and one line on standard error that has the text, and nothing on standard output
fails() {
    local status_wanted=$1 text=$2 status=0
    shift 2
    rax "$@" >stdout 2>stderr || status=$?
    echo "rax $*: status $status"; cat stderr
    [ "$status" -eq "$status_wanted" ] && [ "$(wc -l <stderr)" -eq 1 ] && grep -qF -- "$text" stderr && [ ! -s stdout ]
}

@test "--help and --version go to standard output" {
    rax --help 2>stderr | grep -q '^usage: rax'
    [ ! -s stderr ]
    rax --version | grep -qE '^rax [0-9]+\.[0-9]+'
}

@test "each subcommand has --help, with a line for each common option" {
    commands=$(rax --help | sed -n 's/^  \([a-z]*\) .*/\1/p')
    [ -n "$commands" ]
    for command in $commands; do
        rax "$command" --help >stdout 2>stderr
        [ ! -s stderr ]
        grep -q "^usage: rax $command" stdout
        grep -q -- --threads stdout
    done
}

@test "without a subcommand the help goes to standard error" {
    run -2 --separate-stderr rax
    [ -z "$output" ]
}

@test "a mistyped subcommand names the nearest" {
    fails 2 "prepar: there is no such subcommand; the nearest is prepare" prepar
}

@test "a mistyped option names the nearest" {
    fails 2 "--toknizer: there is no such option of rax prepare; the nearest is --tokenizer" prepare --toknizer=char x
    fails 2 "--no-jt: there is no such option of rax prepare; the nearest is --no-jit" prepare --no-jt x
    fails 2 "-q: there is no such option of rax prepare" prepare -q x
}

@test "values: missing, not wanted, out of range" {
    fails 2 "--out-dir: needs a value" prepare x --out-dir
    fails 2 "--offline=1: takes no value" prepare x --offline=1
    fails 2 "--val_fraction: expected a number from 0 to 0.999, got '2'" prepare x --val-fraction=2
    fails 2 "--threads: expected an integer from 0 to 4096, got 'two'" prepare x --threads two
}

@test "a variable of the environment is checked like its flag" {
    export RAX_NUM_THREADS=two
    fails 2 "RAX_NUM_THREADS: expected an integer from 0 to 4096, got 'two'" prepare x
}

@test "an operand is missing" {
    fails 2 "prepare: expected CORPUS|TEXT..." prepare
    fails 2 "--out_dir: is missing" prepare text
}

@test "a full disk is a failure" {
    [ -e /dev/full ] || skip "no /dev/full"
    run -1 bash -c '"$RAX_BIN" --help >/dev/full'
}

@test "prepare makes token files of a text; - and _ are alike" {
    printf 'to be or not to be that is the question\n%.0s' {1..50} >text
    rax prepare --tokenizer char --out-dir=tokens --val_fraction=0.2 text
    [ "$(wc -c <tokens/train.bin)" -eq 3200 ] && [ "$(wc -c <tokens/val.bin)" -eq 800 ] && [ -s tokens/tokenizer.json ]
    rax prepare --tokenizer char --out_dir again --val-fraction 0.2 text
    cmp tokens/train.bin again/train.bin
}

@test "prepare writes nothing where it fails" {
    printf 'a text of some length' >text
    fails 2 "missing: " prepare --tokenizer char -o tokens text missing
    [ ! -e tokens/train.bin ] && [ ! -e tokens/val.bin ]
    printf x >file
    fails 2 "file: the folder cannot be made" prepare --tokenizer char -o file/tokens text
}

@test "prepare takes a known corpus from RAX_DATA" {
    data="$BATS_TEST_DIRNAME/../../shared/data"
    [ -r "$data/tinyshakespeare.txt" ] || skip "no ../shared/data"
    rax prepare shakespeare_char --data-dir "$data" --offline | grep -q '^shakespeare_char: 1003854 tokens to train on, 111540 to evaluate on, a vocabulary of 65$'
    [ "$(wc -c <cache/data/shakespeare_char/train.bin)" -eq 2007708 ]
}

@test "a signal ends the program with 130 or 143 and no token file" {
    yes 'to be or not to be' | head -c 200000000 >text
    for signal in INT TERM; do
        # job control gives the child SIGINT's default action back
        run bash -c "set -m; '$RAX_BIN' prepare --tokenizer char -o tokens text & sleep 0.1; kill -$signal \$!; wait \$!"
        case $signal in INT) [ "$status" -eq 130 ] ;; TERM) [ "$status" -eq 143 ] ;; esac
        [ ! -e tokens/train.bin ]
    done
}
