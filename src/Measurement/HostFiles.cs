namespace VirtBench.Measurement;

/// <summary>
/// Small text files below a root: /proc and /sys of the host, or a folder that looks like them. What is missing, unreadable
/// or empty is null.
/// </summary>
internal sealed class HostFiles(string root)
{
    public string? Text(string path)
    {
        try
        {
            // Files of /proc and /sys say 0 bytes: read to the end.
            string text = File.ReadAllText(Path.Join(root, path)).Trim('\n', ' ', '\t', '\0');
            return text.Length == 0 ? null : text;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return null;
        }
    }

    public long? Number(string path) => long.TryParse(Text(path), out long value) ? value : null;

    public bool Exists(string path) => File.Exists(Path.Join(root, path));

    /// <summary>Names in a folder, sorted; none when it cannot be read.</summary>
    public IReadOnlyList<string> Names(string path)
    {
        try
        {
            return
            [
                .. Directory
                    .EnumerateFileSystemEntries(Path.Join(root, path))
                    .Select(entry => Path.GetFileName(entry))
                    .Order(StringComparer.Ordinal),
            ];
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return [];
        }
    }

    /// <summary>What follows "<paramref name="key"/>:" at the beginning of a line.</summary>
    public string? Field(string path, string key)
    {
        foreach (string line in Text(path)?.Split('\n') ?? [])
        {
            int colon = line.IndexOf(':', StringComparison.Ordinal);
            if (colon > 0 && line.AsSpan(0, colon).Trim().SequenceEqual(key))
            {
                return line[(colon + 1)..].Trim();
            }
        }

        return null;
    }
}
