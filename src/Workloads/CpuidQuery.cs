using Iced.Intel;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Paravirtual;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// CPUID of the leaf in which a hypervisor gives its name. The sum of the answers gets into the checksum, which therefore differs from
/// k to k, and where the host answers instead of the platform.
/// </summary>
public sealed class CpuidQuery : SlottedWorkload
{
    /// <inheritdoc/>
    public override string Id => "cpuid";

    /// <inheritdoc/>
    public override string Description => "asks k times per unit for the hypervisor's name";

    /// <inheritdoc/>
    public override SensitiveOperation Operation(GuestInterface guestInterface) =>
        new("cpuid", TrapReason.Cpuid) { Names = ["cpuid"] };

    /// <inheritdoc/>
    public override bool NeedsPrivilege => false;

    /// <inheritdoc/>
    public override int DefaultFiller => 20_000;

    /// <inheritdoc/>
    protected override int SlotInstructions => 10;

    /// <summary>The sums of the answers begin with 0. Clobbers rsi, rdi, r9, r10 and flags.</summary>
    protected override void LoadOperands(GuestAssembler a)
    {
        a.xor(esi, esi);
        a.xor(edi, edi);
        a.xor(r9d, r9d);
        a.xor(r10d, r10d);
    }

    /// <summary>
    /// r8 = rbx, the half of the checksum that CPUID writes. The leaf, and zeros in the other registers: that is what a slot
    /// without CPUID adds.
    /// </summary>
    protected override void EmitBefore(GuestAssembler a)
    {
        a.mov(r8, rbx);
        a.mov(eax, PlatformCpuid.HypervisorLeaf);
        a.xor(ebx, ebx);
        a.xor(ecx, ecx);
        a.xor(edx, edx);
    }

    /// <summary>Clobbers rax, rbx, rcx and rdx.</summary>
    protected override void EmitSensitive(GuestAssembler a, int index) => a.cpuid();

    /// <summary>Adds the answer to the sums; restores rbx. Clobbers flags.</summary>
    protected override void EmitAfter(GuestAssembler a)
    {
        a.add(rsi, rax);
        a.add(rdi, rbx);
        a.add(r9, rcx);
        a.add(r10, rdx);
        a.mov(rbx, r8);
    }

    /// <summary>Clobbers flags.</summary>
    protected override void FoldIntoChecksum(GuestAssembler a, bool afterSensitive)
    {
        foreach (AssemblerRegister64 sum in (AssemblerRegister64[])[rsi, rdi, r9, r10])
        {
            a.add(r14, sum);
            a.rol(r14, 17);
        }
    }
}
