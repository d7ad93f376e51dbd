using System.Text.Encodings.Web;
using System.Text.Json;

namespace VirtBench.Cli;

/// <summary>How the tool writes JSON: snake_case, indented, nulls kept.</summary>
internal static class Json
{
    private static readonly JsonSerializerOptions Options = new()
    {
        PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower,
        WriteIndented = true,
        Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping, // it goes to a terminal or a file, never into HTML
    };

    public static string Serialize(object value) => JsonSerializer.Serialize(value, Options);
}
