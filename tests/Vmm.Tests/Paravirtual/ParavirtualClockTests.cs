using VirtBench.Vmm.Paravirtual;

namespace VirtBench.Vmm.Tests.Paravirtual;

public sealed class ParavirtualClockTests
{
    [Theory]
    [InlineData(1e3)]
    [InlineData(1e6)]
    [InlineData(999_999_999)]
    [InlineData(1e9)]
    [InlineData(1_000_000_001)]
    [InlineData(2_445_431_000)]
    [InlineData(3.4e9)]
    [InlineData(4e9)]
    [InlineData(1e10)]
    public void An_hour_is_right_to_the_microsecond_at_every_frequency(double ticksPerSecond)
    {
        (sbyte shift, uint multiplier) = ParavirtualClock.ScaleOf(ticksPerSecond);
        var clock = new ParavirtualClock
        {
            TscTimestamp = 12_345,
            SystemTime = 678,
            TscShift = shift,
            TscToSystemMultiplier = multiplier,
        };
        const double hour = 3600e9;
        double nanoseconds = clock.Nanoseconds(12_345 + (ulong)(3600 * ticksPerSecond));
        Assert.InRange(nanoseconds - 678 - hour, -1000, 1000);
        Assert.True(multiplier >= 1u << 31);
    }

    [Fact]
    public void The_layout_is_that_of_pvclock()
    {
        Assert.Equal(32, System.Runtime.CompilerServices.Unsafe.SizeOf<ParavirtualClock>());
        Assert.Equal(
            8,
            (int)
                System.Runtime.InteropServices.Marshal.OffsetOf<ParavirtualClock>(nameof(ParavirtualClock.TscTimestamp))
        );
        Assert.Equal(
            24,
            (int)
                System.Runtime.InteropServices.Marshal.OffsetOf<ParavirtualClock>(
                    nameof(ParavirtualClock.TscToSystemMultiplier)
                )
        );
        Assert.Equal(
            28,
            (int)System.Runtime.InteropServices.Marshal.OffsetOf<ParavirtualClock>(nameof(ParavirtualClock.TscShift))
        );
        Assert.Equal(
            29,
            (int)System.Runtime.InteropServices.Marshal.OffsetOf<ParavirtualClock>(nameof(ParavirtualClock.Flags))
        );
    }
}
