namespace VirtBench.Analysis;

/// <summary>
/// What virtualization takes from a workload that uses a disk, and how much of the time its CPU sleeps: the same number of traps hides in the
/// waiting for a slow device and shows in full where the device is fast.
/// </summary>
/// <param name="UnitNanoseconds">Wall time of a unit of work.</param>
/// <param name="WaitingNanoseconds">Of it, time that the virtual CPU slept.</param>
/// <param name="IdealNanoseconds">
/// What the unit would take if its requests cost nothing but their service: the measured time of a unit without requests, and the stated
/// service time of each request, one after the other.
/// </param>
public readonly record struct IoShare(double UnitNanoseconds, double WaitingNanoseconds, double IdealNanoseconds)
{
    /// <summary>CPU time of a unit: the guest's own and what virtualizing it took.</summary>
    public double CpuNanoseconds => UnitNanoseconds - WaitingNanoseconds;

    /// <summary>Share of the time that the virtual CPU slept, 0 to 1.</summary>
    public double WaitingShare => WaitingNanoseconds / UnitNanoseconds;

    /// <summary>
    /// Throughput lost, 1 − ideal/actual time of a unit. A little below 0 where jitter made the service shorter than stated.
    /// </summary>
    public double ThroughputLost => 1 - (IdealNanoseconds / UnitNanoseconds);

    /// <summary>Of one cell.</summary>
    /// <param name="unitNanoseconds">Mean wall time of a unit.</param>
    /// <param name="waitingNanoseconds">Mean time slept in a unit.</param>
    /// <param name="idleUnitNanoseconds">Mean wall time of a unit without requests, same strategy and workload.</param>
    /// <param name="requestsPerUnit">Requests of a unit.</param>
    /// <param name="serviceNanoseconds">Stated mean service time of a request.</param>
    public static IoShare Of(
        double unitNanoseconds,
        double waitingNanoseconds,
        double idleUnitNanoseconds,
        double requestsPerUnit,
        double serviceNanoseconds
    ) => new(unitNanoseconds, waitingNanoseconds, idleUnitNanoseconds + (requestsPerUnit * serviceNanoseconds));
}
