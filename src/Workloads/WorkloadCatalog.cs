namespace VirtBench.Workloads;

/// <summary>Every workload there is, in the order in which lists show them.</summary>
public static class WorkloadCatalog
{
    /// <summary>All of them.</summary>
    public static IReadOnlyList<Workload> All { get; } =
    [
        new Compute(),
        new Rdtsc(),
        new PortIo(),
        new Cr3Switch(),
        new InterruptFlag(),
        new Popf(),
        new CpuidQuery(),
        new DescriptorTables(),
        new Syscall(),
        new PageFault(),
        new PteUpdate(),
        new TimerInterrupt(),
        new SelfModifying(),
        new DiskStream(),
        new DiskIo(),
        new MiniOs(),
        new ComputeHash(),
        new ComputeMix(),
        new ComputeBytecode(),
        new ComputeStream(),
        new ComputeSse2(),
        new CallReturn(),
        new IndirectBranch(longPeriod: true),
        new IndirectBranch(longPeriod: false),
    ];

    /// <summary>The workload with this id, or null.</summary>
    public static Workload? Find(string id) => All.FirstOrDefault(workload => workload.Id == id);
}
