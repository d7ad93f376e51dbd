# The machine's whole file system: busybox, modules, .NET, the payload and the shared libraries they need.

epoch=1735689600

build_initramfs() {
  local image=$1 root=$scratch/root
  mkdir -p "$root"/{bin,lab/modules,proc,sys,dev,tmp,root,etc,outbox}
  cp -L "$(command -v busybox)" "$root/bin/busybox"
  cp "$lab/init" "$root/init"
  copy_module "$module" "$root/lab/modules"
  printf 'module=%q\nparameters=%q\n' "$module" "$paging=$nested" > "$root/lab/settings"
  write_steps > "$root/lab/steps"
  copy_payload "$root"
  copy_libraries "$root"
  # Order and dates fixed: the same payload makes the same machine, which in Bochs takes the same instructions.
  find "$root" -exec touch -h -d "@$epoch" {} +
  (cd "$root" && find . | LC_ALL=C sort | busybox cpio -o -H newc -R 0:0 2> /dev/null) > "$image"
  rm -rf "$root"
}

# Copies every shared library that a program or library in the folder is linked with, to the same place in there.
copy_libraries() {
  local root=$1 library
  {
    # ldd fails when one of them is linked statically.
    { find "$root" -type f \( -name '*.so' -o -path '*/bin/busybox' -o -path '*/dotnet/dotnet' \) -exec ldd {} + 2> /dev/null || true; } |
      awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\// && $2 ~ /^\(/ { print $1 }'
    # Opened by name while running: the test runner hashes the names of its tests with OpenSSL.
    ldconfig -p | awk '/x86-64/ && ($1 == "libssl.so.3" || $1 == "libcrypto.so.3") { print $NF }'
  } | sort -u | while read -r library; do
    # The program interpreter has a fixed path; everything else goes where the loader looks first.
    case $library in
      */ld-linux-*) mkdir -p "$root/lib64" && cp -L "$library" "$root/lib64/" ;;
      *) mkdir -p "$root/lib/x86_64-linux-gnu" && cp -L "$library" "$root/lib/x86_64-linux-gnu/" ;;
    esac
  done
}
