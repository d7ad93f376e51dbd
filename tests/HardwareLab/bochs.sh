# The Intel machine: Bochs interprets VMX and EPT, so Linux loads kvm_intel. Its time is counted in instructions.

default_time_limit=3600
emulator_tools=(
  bochs bochs /usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so bochs-term
  /usr/share/bochs/BIOS-bochs-latest bochsbios /usr/share/vgabios/vgabios.bin vgabios
  grub-mkimage grub-common /usr/lib/grub/i386-pc grub-pc-bin xorriso xorriso script bsdutils
)

# Bochs ignores SIGTERM.
stop_emulator() { [[ ! -s $scratch/bochs.pid ]] || kill -KILL "$(< "$scratch/bochs.pid")" 2> /dev/null || true; }

boot() {
  local initramfs=$1 limit=$2 emulator status=0
  bootable_image "$initramfs"
  cp "$lab/bochsrc" "$scratch/"
  echo c > "$scratch/continue" # Debian's Bochs stops at its debugger's prompt: go on
  touch "$scratch"/{console,display}.log
  # The display "term" wants a terminal: script has one. 124 is timeout's word for a hang.
  (
    cd "$scratch"
    TERM=xterm exec script -qfec "timeout --foreground -k 5 $limit sh -c 'echo \$\$ > bochs.pid; exec bochs -q -f bochsrc -rc continue'" /dev/null \
      < /dev/null > display.log 2>&1
  ) &
  emulator=$!
  drain_screen "$emulator" &
  tail -n +1 -f --pid "$emulator" "$scratch/console.log" &
  wait "$emulator" || status=$?
  wait # for the last lines of the console
  # 1 is what Bochs says after a clean power-off too; what was sent decides.
  ((status == 1)) || return "$status"
}

# Bochs opens a terminal for the machine's screen, says which, and stops for ever when it is full because nobody reads it.
drain_screen() {
  local screen=''
  while [[ ! $screen ]] && kill -0 "$1" 2> /dev/null; do
    sleep 0.2
    screen=$(sed -n 's/.*connected to screen "\(.*\)".*/\1/p' "$scratch/display.log" || true)
  done
  [[ ! $screen ]] || cat "$screen" > /dev/null 2>&1 || true
}

# A CD that GRUB boots the kernel from: Bochs has no way to load a kernel itself. grub-mkrescue would put the date into it.
bootable_image() {
  local folder=$scratch/cd
  mkdir -p "$folder/boot"
  cp "$kernel_folder/boot/vmlinuz-$kernel_release" "$folder/boot/vmlinuz"
  mv "$1" "$folder/boot/initramfs" # not compressed: reading it is quicker than unpacking it
  cat > "$folder/boot/grub.cfg" <<'CFG'
serial --unit=0 --speed=115200
terminal_output serial
echo "GRUB: loading, which takes half a minute"
linux /boot/vmlinuz console=ttyS0,115200 quiet panic=0 mitigations=off nokaslr cryptomgr.notests
initrd /boot/initramfs
boot
CFG
  {
    grub-mkimage -O i386-pc-eltorito -p /boot -o "$folder/boot/eltorito.img" biosdisk iso9660 linux normal serial terminal echo
    find "$folder" -exec touch -d "@$epoch" {} +
    SOURCE_DATE_EPOCH=$epoch xorriso -as mkisofs -R -b boot/eltorito.img -no-emul-boot -boot-load-size 4 -boot-info-table \
      --grub2-boot-info -o "$scratch/cd.iso" "$folder"
  } > "$scratch/cd.log" 2>&1 || { cat "$scratch/cd.log" >&2; die "cannot build the CD"; }
  rm -rf "$folder"
}
