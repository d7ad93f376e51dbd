# The Intel machine: Bochs interprets VMX and EPT, so Linux loads kvm_intel. Its time is counted in instructions.

default_time_limit=3600

need_emulator() {
  need bochs "bochs bochs-term bochsbios vgabios" grub-mkrescue grub-common xorriso xorriso mformat mtools script bsdutils
  [[ -d /usr/lib/grub/i386-pc ]] || skip "missing tools; Debian's packages: grub-pc-bin"
  [[ -e /usr/share/bochs/BIOS-bochs-latest && -e /usr/share/vgabios/vgabios.bin ]] || skip "missing tools; Debian's packages: bochsbios vgabios"
}

# Bochs ignores SIGTERM.
stop_emulator() { [[ ! -s $scratch/bochs.pid ]] || kill -KILL "$(< "$scratch/bochs.pid")" 2> /dev/null || true; }

boot() {
  local initramfs=$1 limit=$2 emulator status=0
  bootable_image "$initramfs"
  sed "s|@folder@|$scratch|g" "$lab/bochsrc.in" > "$scratch/bochsrc"
  echo c > "$scratch/continue" # Debian's Bochs stops at its debugger's prompt: go on
  : > "$scratch/console.log"
  # The display "term" wants a terminal: script has one. 124 is timeout's word for a hang.
  TERM=xterm script -qfec "timeout --foreground -k 5 $limit sh -c 'echo \$\$ > $scratch/bochs.pid; exec bochs -q -f $scratch/bochsrc -rc $scratch/continue'" \
    /dev/null < /dev/null > "$scratch/display.log" 2>&1 &
  emulator=$!
  tail -n +1 -f --pid "$emulator" "$scratch/console.log"
  wait "$emulator" || status=$?
  # 1 is what Bochs says after a clean power-off too; what was sent decides.
  ((status == 1)) || return "$status"
}

# A CD that GRUB boots the kernel from: Bochs has no way to load a kernel itself.
bootable_image() {
  local folder=$scratch/cd
  mkdir -p "$folder/boot/grub"
  cp "$kernel_folder/boot/vmlinuz-$kernel_release" "$folder/boot/vmlinuz"
  mv "$1" "$folder/boot/initramfs"
  cat > "$folder/boot/grub/grub.cfg" <<'CFG'
serial --unit=0 --speed=115200
terminal_output serial
echo "GRUB: loading"
linux /boot/vmlinuz console=ttyS0,115200 quiet panic=0 mitigations=off nokaslr cryptomgr.notests
initrd /boot/initramfs
boot
CFG
  grub-mkrescue -d /usr/lib/grub/i386-pc -o "$scratch/cd.iso" "$folder" > "$scratch/grub.log" 2>&1 || { cat "$scratch/grub.log" >&2; die "cannot build the CD"; }
  rm -rf "$folder"
}
