using VirtBench.Measurement.Benchmarks;

namespace VirtBench.Measurement.Tests;

public sealed class DiskComparisonTests
{
    [Fact]
    public void The_table_has_a_row_for_each_way_of_reading_and_names_what_is_not_available()
    {
        var output = new StringWriter();
        DiskComparison.Print(output, [StrategiesUnderTest.Get("simulated-trap-and-emulate")], 2, 2e6);
        string[] lines = output.ToString().Split('\n', StringSplitOptions.RemoveEmptyEntries);
        string[] rows =
        [
            .. lines.Where(line => line.StartsWith("| simulated-trap-and-emulate", StringComparison.Ordinal)),
        ];
        Assert.Equal(6, rows.Length); // three ways, by exits and held back
        Assert.Single(
            lines,
            line => line.StartsWith("  simulated-trap-and-emulate+direct: skipped, ", StringComparison.Ordinal)
        );
        string[] ata = rows[0].Split('|', StringSplitOptions.TrimEntries);
        Assert.Equal(("ATA PIO", "1", "1.0", "10.00"), (ata[2], ata[3], ata[6], ata[8]));
    }
}
