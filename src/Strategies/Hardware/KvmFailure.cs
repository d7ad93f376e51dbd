using Iced.Intel;
using VirtBench.Strategies.Native;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.Hardware;

/// <summary>Words for exits after which a guest cannot go on.</summary>
internal static class KvmFailure
{
    /// <summary>
    /// Triple fault. AMD's processor leaves the guest's state undefined then and KVM resets it (RIP 0xFFF0), so there may be
    /// nothing to say of the place.
    /// </summary>
    public static string Shutdown(VirtualCpu cpu)
    {
        const ulong reset = 0xFFF0;
        string where = cpu.Rip == reset ? "where, this CPU does not tell" : $"RIP 0x{cpu.Rip:X}";
        return $"triple fault: an exception could not be delivered, {where}; check the guest's IDT and stack";
    }

    /// <summary>KVM cannot go on by itself; the CPU's state has been saved.</summary>
    public static string InternalError(uint suberror, VirtualCpu cpu, GuestMemory memory, string module)
    {
        switch (suberror)
        {
            case Kvm.InternalErrorEmulation:
                Translation code = Walk(cpu, memory, cpu.Rip);
                if (!code.Fault && !memory.Contains(code.PhysicalAddress, 1))
                {
                    return $"the guest fetches an instruction at RIP 0x{cpu.Rip:X}, guest-physical 0x{code.PhysicalAddress:X}, "
                        + "where there is no RAM";
                }

                return $"the instruction emulator of {module} does not have {Describe(cpu, memory)} at RIP 0x{cpu.Rip:X} in ring "
                    + $"{cpu.Cpl}, where it is needed";

            case Kvm.InternalErrorDeliveryEvent:
                return $"{module} gave up delivering an event at RIP 0x{cpu.Rip:X}: the guest's IDT, stack or TSS lies where "
                    + "there is no RAM";

            default:
                return $"{module} reports internal error {suberror} at RIP 0x{cpu.Rip:X}";
        }
    }

    private static Translation Walk(VirtualCpu cpu, GuestMemory memory, ulong address) =>
        PageWalker.Walk(cpu, memory, address, PageAccess.Execute | (cpu.Cpl == 3 ? PageAccess.User : 0), commit: false);

    private static string Describe(VirtualCpu cpu, GuestMemory memory)
    {
        byte[] bytes = new byte[15];
        int length = 0;
        for (; length < bytes.Length; length++)
        {
            Translation at = Walk(cpu, memory, cpu.Rip + (ulong)length);
            if (at.Fault || !memory.Contains(at.PhysicalAddress, 1))
            {
                break;
            }

            bytes[length] = memory.Read<byte>(at.PhysicalAddress);
        }

        var decoder = Decoder.Create(64, new ByteArrayCodeReader(bytes, 0, length), cpu.Rip);
        decoder.Decode(out Instruction instruction);
        return instruction.IsInvalid
            ? $"the instruction {Convert.ToHexString(bytes, 0, Math.Min(length, 4))}…"
            : $"'{instruction.Mnemonic.ToString().ToLowerInvariant()}'";
    }
}
