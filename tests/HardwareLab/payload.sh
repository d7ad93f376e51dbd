# What runs inside: the .NET runtime, the tests, the tool, and the steps that start them.

# Publishes into the cache; dotnet builds what has changed only.
publish_payload() {
  local project
  payload=$cache/payload
  tests_name=$(basename "$tests")
  [[ -e $repository/$tests/$tests_name.csproj ]] || die "there is no $tests/$tests_name.csproj"
  publish "$tests" "$payload/$tests_name"
  publish src/Cli "$payload/Cli"
  exit_costs=tests/HardwareLab/ExitCosts # what single exits cost: an optional program
  [[ ! -e $repository/$exit_costs ]] || publish "$exit_costs" "$payload/ExitCosts"
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
    -o "$to" -v quiet --nologo > "$scratch/publish.log" 2>&1 || { cat "$scratch/publish.log" >&2; die "cannot build $project"; }
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
  for program in "$tests_name" Cli ExitCosts; do
    [[ ! -d $payload/$program ]] || cp -r "$payload/$program" "$root/payload/"
  done
  # Needed by `virtbench bench` and by `dotnet test` only.
  rm -rf "$root"/payload/*/{Microsoft.CodeAnalysis*,Microsoft.CodeCoverage,Microsoft.Diagnostics*,libcapstone.so,amd64,x86,arm64,runtimes,*.pdb,*.xml,figure-renderer} \
    "$root"/payload/*/{cs,de,es,fr,it,ja,ko,pl,pt-BR,ru,tr,zh-Hans,zh-Hant}
  # What the tests share with the tool they take from there, where it is compiled ahead of time; it also saves memory.
  for library in "$root/payload/Cli"/*.dll; do
    library=${library##*/}
    [[ ! -e $root/payload/$tests_name/$library ]] || ln -sf "../Cli/$library" "$root/payload/$tests_name/$library"
  done
}

# The steps, as a script that /init sources: step NAME SECONDS COMMAND…, the output goes to NAME.log, the exit status to NAME.status.
write_steps() {
  # One test at a time, each named when it starts: a machine that hangs says where.
  printf 'step tests 600 dotnet /payload/%s/VirtBench.%s.dll -noColor -noLogo -parallel none -reporter verbose' "$tests_name" "$tests_name"
  ((!${#test_arguments[@]})) || printf ' %q' "${test_arguments[@]}"
  echo
  if $sweep; then
    echo "step sweep 600 dotnet /payload/Cli/virtbench.dll run --strategy $strategies --rounds 3 --traps-per-unit 0,1,4,16 --out /outbox/run"
  fi
  [[ ! -d $payload/ExitCosts ]] || echo "step exit-costs 600 dotnet /payload/ExitCosts/VirtBench.ExitCosts.dll"
}
