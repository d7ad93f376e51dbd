# What runs inside: the .NET runtime, the tests, the tool, and the steps that start them.

# Publishes into the cache what has changed. Sets programs, the names of the folders in there.
publish_payload() {
  payload=$cache/payload
  tests_name=$(basename "$tests")
  programs=("$tests_name" Cli)
  [[ -e $repository/$tests/$tests_name.csproj ]] || die "there is no $tests/$tests_name.csproj"
  publish "$tests" "$payload/$tests_name"
  publish src/Cli "$payload/Cli"
  # Its figures are instruction counts in Bochs and mean nothing elsewhere.
  if [[ $machine == intel ]]; then
    publish tests/HardwareLab/ExitCosts "$payload/ExitCosts"
    programs+=(ExitCosts)
  fi
}

publish() {
  local project=$1 to=$2 options=()
  # Sources as old as the last time: nothing to do.
  [[ ! -e $to/stamp || $(find "$repository"/{src,"$project",tests/*.props,*.props} \( -name bin -o -name obj -o -name node_modules \) -prune \
    -o -type f -newer "$to/stamp" -print -quit) ]] || return 0
  # Compiled ahead of time where the lock file names the runtime: an emulated processor compiles slowly.
  if grep -q '"net10.0/linux-x64"' "$repository/$project/packages.lock.json"; then
    options=(-r linux-x64 -p:PublishReadyToRun=true)
  fi
  echo "hardware lab $name: building $project"
  rm -rf "$to"
  touch "$scratch/stamp"
  dotnet publish "$repository/$project" -c Release --no-self-contained "${options[@]}" -p:RestoreLockedMode=true \
    -p:SatelliteResourceLanguages=en -o "$to" -v quiet --nologo > "$scratch/publish.log" 2>&1 || { cat "$scratch/publish.log" >&2; die "cannot build $project"; }
  cp -p "$scratch/stamp" "$to/stamp"
}

# The payload as it goes into the machine: one runtime, the host's own, for all programs.
copy_payload() {
  local root=$1 runtime program library
  runtime=$(dotnet --list-runtimes | sed -n 's/^Microsoft\.NETCore\.App \(10\.[^ ]*\) \[\(.*\)\]$/\2\/\1/p' | tail -n 1)
  [[ $runtime ]] || die "dotnet --list-runtimes names no Microsoft.NETCore.App 10"
  local dotnet_root=${runtime%/shared/*}
  mkdir -p "$root/dotnet/shared/Microsoft.NETCore.App" "$root/payload"
  cp "$dotnet_root/dotnet" "$root/dotnet/"
  cp -r "$dotnet_root/host" "$root/dotnet/"
  cp -r "$runtime" "$root/dotnet/shared/Microsoft.NETCore.App/"
  # Debuggers and tracing are of no use in there; the machine's memory is.
  rm -f "$root"/dotnet/shared/*/*/{libmscordaccore,libmscordbi,libcoreclrtraceptprovider,libclrgc,libclrgcexp}.so
  for program in "${programs[@]}"; do
    cp -r "$payload/$program" "$root/payload/"
  done
  # Needed by `virtbench bench` and by `dotnet test` only.
  rm -rf "$root"/payload/*/{Microsoft.CodeAnalysis*,Microsoft.CodeCoverage,Microsoft.Diagnostics*,libcapstone.so,amd64,x86,arm64,runtimes,*.pdb,*.xml,figure-renderer}
  # What the others share with the tool they take from there, where it is compiled ahead of time; it also saves memory.
  for program in "${programs[@]}"; do
    [[ $program != Cli ]] || continue
    for library in "$root/payload/Cli"/*.dll; do
      library=${library##*/}
      [[ ! -e $root/payload/$program/$library ]] || ln -sf "../Cli/$library" "$root/payload/$program/$library"
    done
  done
}

# The steps, as a script that /init sources: step NAME SECONDS COMMAND…, the output goes to NAME.log, the exit status to NAME.status.
write_steps() {
  # One test at a time, each named when it starts: a machine that hangs says where.
  printf 'step tests 1200 dotnet /payload/%s/VirtBench.%s.dll -noColor -noLogo -parallel none -reporter verbose' "$tests_name" "$tests_name"
  ((!${#test_arguments[@]})) || printf ' %q' "${test_arguments[@]}"
  echo
  if $sweep; then
    echo "step sweep 1200 dotnet /payload/Cli/virtbench.dll run --strategy $strategies --workload $workloads --rounds 2 --traps-per-unit 0,1,4 --out /outbox/run"
  fi
  [[ $machine != intel ]] || echo "step exit-costs 1200 dotnet /payload/ExitCosts/VirtBench.ExitCosts.dll"
}
