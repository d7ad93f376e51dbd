using System.ComponentModel;
using System.Runtime.InteropServices;
using System.Runtime.Versioning;
using VirtBench.Strategies.Native;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.Carrier;

/// <summary>
/// Whether this host can run guests in carriers by a certain engine, found out by doing it: a guest of three instructions exits and is resumed
/// over each return path, and every register must come back as it went in.
/// </summary>
internal sealed class CarrierProbe
{
    private const ulong CodeAddress = 0x8_0000;

    private readonly Func<VirtualCpu, GuestMemory, bool, IExecutionEngine> _create;
    private readonly Lazy<(string? Reason, string? IretReason)> _result;

    /// <summary>Nothing is tried before it is asked for.</summary>
    /// <param name="create">Makes the engine; the last argument is whether it returns to the guest by XRSTOR and IRETQ.</param>
    public CarrierProbe(Func<VirtualCpu, GuestMemory, bool, IExecutionEngine> create)
    {
        _create = create;
        _result = new(Probe);
    }

    /// <summary>Why the host cannot run guests so, in one line; null when it can.</summary>
    public string? UnavailableReason => _result.Value.Reason;

    /// <summary>Why the return by XRSTOR and IRETQ is not used; null when its self-check has passed.</summary>
    public string? IretRefusal => _result.Value.IretReason;

    private (string?, string?) Probe()
    {
        if (!OperatingSystem.IsLinux() || RuntimeInformation.ProcessArchitecture != Architecture.X64)
        {
            string host = $"{RuntimeInformation.RuntimeIdentifier}";
            return ($"needs Linux on x86-64, this host is {host}; use the simulated strategies", null);
        }

        const ulong atHwcap2 = 26;
        const ulong fsgsbase = 2; // HWCAP2_FSGSBASE
        if ((Linux.Getauxval(atHwcap2) & fsgsbase) == 0)
        {
            return ("needs the FSGSBASE instructions, which this CPU or kernel (before 5.9) does not offer", null);
        }

        string? reason = SelfCheck(returnByIret: false);
        return (reason, reason ?? SelfCheck(returnByIret: true));
    }

    [SupportedOSPlatform("linux")]
    private unsafe string? SelfCheck(bool returnByIret)
    {
        try
        {
            using var memory = new GuestMemory(GuestMemory.MinimumSize);
            var carrier = new CarrierOptions { TrapTimeStampCounter = true, ReturnByIret = returnByIret };
            new CarrierProcess(memory.FileDescriptor, carrier).Dispose(); // what the host refuses, by itself

            using var cpu = new VirtualCpu();
            using IExecutionEngine engine = _create(cpu, memory, returnByIret);
            byte[] code = [0xF4, 0xF4, 0xF4]; // HLT
            memory.Write(CodeAddress, code);
            cpu.Rip = CodeAddress;
            FillWithPattern(cpu);

            for (int trap = 0; trap < code.Length; trap++)
            {
                var before = new ReadOnlySpan<byte>(cpu.Registers, GuestRegisters.Size).ToArray();
                VmExit exit = engine.Run();
                if (exit.Reason == VmExitReason.PageFault && exit.Address == CodeAddress)
                {
                    _ = engine.Map(
                        new ShadowPage(
                            CodeAddress,
                            CodeAddress,
                            CodeAddress,
                            4096,
                            PageAccess.Read | PageAccess.Execute
                        )
                    );
                    exit = engine.Run();
                }

                if (exit.Reason == VmExitReason.Failed)
                {
                    return $"the self-check found no way through: {exit.Message}";
                }

                if (exit.Reason != VmExitReason.PrivilegedInstruction)
                {
                    return $"the self-check's HLT did not exit but gave {exit.Reason}";
                }

                engine.SaveLazyState();
                var after = new ReadOnlySpan<byte>(cpu.Registers, GuestRegisters.Size);
                int difference = FirstDifference(before, after);
                if (difference >= 0 || cpu.Fs.Base != FsPattern || cpu.Gs.Base != GsPattern)
                {
                    string path = returnByIret ? "XRSTOR and IRETQ" : "rt_sigreturn";
                    return $"the self-check of the return by {path} found registers changed (byte {difference})";
                }

                cpu.Rip++;
            }

            return null;
        }
        catch (Win32Exception refusal)
        {
            return $"the host does not let a process be set up as a carrier: {refusal.Message}";
        }
        catch (CarrierException death)
        {
            return $"the self-check's carrier could not be set up: {death.Message}";
        }
    }

    private const ulong FsPattern = 0x1234_5678_9000;
    private const ulong GsPattern = 0x2345_6789_A000;

    private static unsafe void FillWithPattern(VirtualCpu cpu)
    {
        for (int i = 0; i < 16; i++)
        {
            cpu[i] = 0x0101_0101_0101_0101UL * (ulong)(i + 1);
        }

        cpu.Rflags |= Rflags.Cf | Rflags.Zf | Rflags.Of | Rflags.Df;
        byte* xmm = (byte*)cpu.Registers + GuestRegisters.XmmOffset;
        for (int i = 0; i < 256; i++)
        {
            xmm[i] = (byte)(i ^ 0x5A);
        }

        cpu.Fs = cpu.Fs with { Base = FsPattern };
        cpu.Gs = cpu.Gs with { Base = GsPattern };
    }

    // Registers, RIP, RFLAGS; MXCSR and XMM. The x87 part's last-instruction pointers are the kernel's to lose.
    private static int FirstDifference(ReadOnlySpan<byte> before, ReadOnlySpan<byte> after)
    {
        const int general = 144;
        int common = before[..general].CommonPrefixLength(after[..general]);
        if (common < general)
        {
            return common;
        }

        const int length = 256;
        ReadOnlySpan<byte> xmmBefore = before.Slice(GuestRegisters.XmmOffset, length);
        common = xmmBefore.CommonPrefixLength(after.Slice(GuestRegisters.XmmOffset, length));
        if (common < length)
        {
            return GuestRegisters.XmmOffset + common;
        }

        ReadOnlySpan<byte> mxcsr = before.Slice(GuestRegisters.MxcsrOffset, 4);
        return mxcsr.SequenceEqual(after.Slice(GuestRegisters.MxcsrOffset, 4)) ? -1 : GuestRegisters.MxcsrOffset;
    }
}
