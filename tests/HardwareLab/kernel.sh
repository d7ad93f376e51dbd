# Debian's cloud kernel, unpacked once into the cache. Sets kernel_folder (what dpkg -x left) and kernel_release.

fetch_kernel() {
  local folder=$cache/kernel
  if [[ ! -e $folder/package ]]; then
    rm -rf "$folder" "$folder.new"
    mkdir -p "$folder.new"
    # A package list that is missing or too old is worth one more try, for those who may renew it.
    download_kernel "$folder.new" || { [[ $(id -u) == 0 ]] && apt-get update -qq > /dev/null 2>&1 && download_kernel "$folder.new"; } ||
      skip "no kernel: $(grep -m 1 '^E:' "$scratch/download.log" || echo "apt knows no linux-image-cloud-amd64 (on Debian: apt-get update)")"
    dpkg -x "$folder.new"/*.deb "$folder.new"
    basename "$folder.new"/*.deb .deb > "$folder.new/package"
    rm "$folder.new"/*.deb
    mv "$folder.new" "$folder"
  fi
  kernel_folder=$folder
  kernel_release=$(basename "$folder"/boot/vmlinuz-*)
  kernel_release=${kernel_release#vmlinuz-}
  echo "hardware lab $name: kernel $(< "$folder/package")"
}

download_kernel() {
  local folder=$1 package
  # linux-image-cloud-amd64 is empty; the kernel is what it depends on.
  package=$(apt-cache depends linux-image-cloud-amd64 2> /dev/null | awk '/Depends: linux-image-/ { print $2; exit }')
  # apt warns when its own user cannot write here; the download works all the same.
  (cd "$folder" && apt-get download -q "${package:?}") > "$scratch/download.log" 2>&1
}

# Copies a module and what it depends on into a folder, and appends the names to its file "order", dependencies first.
copy_module() {
  local module=$1 folder=$2 file dependency
  ! grep -qxF "$module" "$folder/order" 2> /dev/null || return 0
  file=$(find "$kernel_folder" -name "$module.ko" -o -name "${module//-/_}.ko" -o -name "$module.ko.xz" -o -name "${module//-/_}.ko.xz" | head -n 1)
  [[ $file ]] || die "the kernel has no module $module"
  if [[ $file == *.xz ]]; then busybox xzcat "$file"; else cat "$file"; fi > "$folder/$module.ko"
  for dependency in $(tr '\0' '\n' < "$folder/$module.ko" | sed -n 's/^depends=//p' | tr ',' ' '); do
    copy_module "$dependency" "$folder"
  done
  echo "$module" >> "$folder/order"
}
