using System.Security.Cryptography;

namespace VirtBench.Reporting.Runs;

/// <summary>Files of a run directory, with errors in one line.</summary>
internal static class RunFiles
{
    public static byte[] Read(string path)
    {
        try
        {
            return File.ReadAllBytes(path);
        }
        catch (Exception error) when (error is FileNotFoundException or DirectoryNotFoundException)
        {
            throw new RunDirectoryException(
                $"{path} is missing: this is no run directory, or the file was removed.",
                error
            );
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException)
        {
            throw new RunDirectoryException($"Cannot read {path}: {error.Message}", error);
        }
    }

    /// <summary>Replaces a file as a whole: a reader, or a crash, sees the old contents or the new, never a part.</summary>
    public static void Replace(string path, ReadOnlySpan<byte> contents)
    {
        Writing(
            path,
            contents,
            static (path, contents) =>
            {
                Directory.CreateDirectory(Path.GetDirectoryName(path)!);
                var temporary = path + TemporaryEnding;
                using (var stream = new FileStream(temporary, FileMode.Create, FileAccess.Write))
                {
                    stream.Write(contents);
                    stream.Flush(flushToDisk: true);
                }
                File.Move(temporary, path, overwrite: true);
            }
        );
    }

    /// <summary>Turns the errors of a write into a line.</summary>
    public static void Writing<TContents>(string path, TContents contents, Action<string, TContents> write)
        where TContents : allows ref struct
    {
        try
        {
            write(path, contents);
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException)
        {
            throw new RunDirectoryException(
                $"Cannot write {path}: {error.Message} Choose a folder that you may write to with --out.",
                error
            );
        }
    }

    public const string TemporaryEnding = ".tmp";

    public static string Sha256(ReadOnlySpan<byte> contents) => Convert.ToHexStringLower(SHA256.HashData(contents));
}
