# What the machine left, and whether that is a success.

keep_console() { cp "$scratch/console.log" "$out/console.log"; }

# The number behind a word in the test runner's last line: "… Total: 12, Errors: 0, Failed: 0, Skipped: 1, Not Run: 0, Time: 1.2s".
count() { sed -n "s/.*Total: .*/&/p" "$out/tests.log" | tail -n 1 | grep -oP "(?<=[ ,]$1: )\d+" || echo 0; }

verdict() {
  local ok=true total failed skipped passed sweep_says=none parameter
  keep_console
  tar -xzf "$scratch/outbox.tar.gz" -C "$out" 2> /dev/null ||
    die "$name: the machine stopped before it sent its results; its console is in $out/console.log"

  parameter=$(sed -n "s|^/sys/module/${module//-/_}/parameters/$paging ||p" "$out/kvm-parameters")
  case $parameter in Y) parameter=1 ;; N) parameter=0 ;; esac
  [[ $parameter == "$nested" ]] || { echo "hardware lab $name: $paging is '$parameter', not $nested"; ok=false; }

  total=$(count Total) skipped=$(count Skipped)
  failed=$(($(count Failed) + $(count Errors)))
  passed=$((total - failed - skipped - $(count 'Not Run')))
  ((passed > 0 && failed == 0)) && [[ $(< "$out/tests.status") == 0 ]] || ok=false

  if $sweep; then
    sweep_says=$(sweep_counts) || ok=false
    [[ $(< "$out/sweep.status") == 0 ]] || ok=false
    sweep_says+=", exit status $(< "$out/sweep.status")"
  fi
  [[ ! -e $out/exit-costs.status || $(< "$out/exit-costs.status") == 0 ]] || { echo "hardware lab $name: exit-costs failed"; ok=false; }

  # Again at the end, which is what one sees of a long log.
  sed -nE "s/^ +(VirtBench\..*) \[FAIL\]\r?$/hardware lab $name: failed: \1/p" "$out/tests.log"
  echo "hardware lab $name: logs$($sweep && echo " and the run directory") are in ${out#"$PWD"/}"
  echo "hardware lab $name: tests: $passed passed, $failed failed, $skipped skipped; sweep: $sweep_says"
  $ok || exit 1
}

# Samples by strategy out of samples.csv; fails when one is not ok or a strategy has none.
sweep_counts() {
  local samples=("$out"/run/*/samples.csv)
  [[ -e ${samples[0]} ]] || { echo "no samples"; return 1; }
  # No field before the note, the last one, holds a comma.
  tr -d '\r' < "${samples[0]}" | awk -F, -v wanted="$strategies" '
    NR == 1 { for (i = 1; i <= NF; i++) column[$i] = i; next }
    { count[$column["strategy"]]++; if ($column["status"] != "ok") bad++ }
    END {
      n = split(wanted, names, ",")
      for (i = 1; i <= n; i++) { printf "%d samples of %s, ", count[names[i]], names[i]; if (!count[names[i]]) bad_strategy = 1 }
      printf "%d not ok", bad
      exit bad > 0 || bad_strategy
    }'
}
