# The AMD machine: QEMU interprets SVM and nested paging, so Linux loads kvm_amd.

default_time_limit=900
emulator_tools=(qemu-system-x86_64 qemu-system-x86)

emulator='' # process group, while it runs
stop_emulator() { [[ ! $emulator ]] || kill -KILL -- "-$emulator" 2> /dev/null || true; }

boot() {
  local initramfs=$1 limit=$2 status=0
  # A process group of its own (set -m), so that it can be ended with all its children. mitigations=off: they only cost time in there.
  # -smap: before QEMU 9.1 an IRET in ring 3, which trap-and-emulate uses, was stopped by it.
  set -m
  {
    timeout --foreground -k 5 "$limit" qemu-system-x86_64 -accel tcg -machine q35 -cpu max,-smap -smp 1 -m 2048 \
      -display none -nodefaults -no-reboot -chardev stdio,id=console,signal=off -serial chardev:console -serial "file:$scratch/outbox.tar.gz" \
      -kernel "$kernel_folder/boot/vmlinuz-$kernel_release" -initrd "$initramfs" \
      -append "console=ttyS0,115200 quiet panic=-1 mitigations=off nokaslr" < /dev/null | tee "$scratch/console.log"
  } &
  emulator=$!
  set +m
  wait "$emulator" || status=$?
  emulator=''
  return "$status"
}
