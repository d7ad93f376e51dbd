using VirtBench.Strategies;

namespace VirtBench.Reporting.Figures;

/// <summary>How a strategy is drawn, the same in every figure of every run.</summary>
/// <param name="Color">Colour of lines and points.</param>
/// <param name="Fill">Inside of points: the colour, or white for computed times.</param>
/// <param name="Shape">Shape of points.</param>
/// <param name="Dash">Dashes of lines, on and off in pixels; [1, 0] is solid.</param>
/// <remarks>
/// The colours are those of Okabe and Ito (Color Universal Design, 2008), told apart by readers with any common colour
/// vision. Shape and dashes tell strategies apart in grey. A simulated strategy has the colour and shape of the real one,
/// hollow and dashed: it is the same technique with times from a cost profile.
/// </remarks>
internal sealed record StrategyStyle(string Color, string Fill, string Shape, IReadOnlyList<int> Dash)
{
    private const string SimulatedPrefix = "simulated-";

    private static readonly int[] Solid = [1, 0];
    private static readonly int[] Dashed = [6, 3];

    private static readonly Dictionary<string, (string Color, string Shape)> Known = new()
    {
        ["native"] = ("#000000", "circle"),
        ["trap-and-emulate"] = ("#0072B2", "square"),
        ["binary-translation"] = ("#009E73", "triangle-up"),
        ["paravirtual"] = ("#CC79A7", "diamond"),
        ["hardware"] = ("#D55E00", "triangle-down"),
        ["hardware-paravirtual"] = ("#E69F00", "cross"),
    };

    private static readonly (string Color, string Shape) Unknown = ("#56B4E9", "triangle-right");

    public static StrategyStyle Of(string strategy, bool isComputed)
    {
        var basis = StrategyWithDelivery.BasisOf(strategy);
        var name = basis.StartsWith(SimulatedPrefix, StringComparison.Ordinal)
            ? basis[SimulatedPrefix.Length..]
            : basis;
        var (color, shape) = Known.GetValueOrDefault(name, Unknown);
        return new StrategyStyle(color, isComputed ? "#FFFFFF" : color, shape, isComputed ? Dashed : Solid);
    }
}
