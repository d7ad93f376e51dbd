using System.Text;
using CsvHelper;

namespace VirtBench.Reporting.Runs;

/// <summary>Reading and writing the CSV files of a run: RFC 4180, CRLF, UTF-8, one record a line.</summary>
internal static class CsvFile
{
    private static readonly CsvReaderOptions Reading = new()
    {
        Separator = ',',
        TrackLineNumbers = true,
        MalformedData = CsvMalformedDataHandling.Throw,
        FieldCountMismatch = CsvFieldCountHandling.Throw,
        MissingField = CsvMissingFieldHandling.Throw,
        PoolStrings = true,
    };

    private static readonly CsvWriterOptions Rows = new() { HasHeader = false };

    /// <summary>Header and rows as bytes.</summary>
    public static byte[] Encode<TRow>(IEnumerable<TRow> rows, bool withHeader)
    {
        using var stream = new MemoryStream();
        using (var writer = CsvWriter.Create(stream, withHeader ? null : Rows, leaveOpen: true))
        {
            writer.WriteRecords(rows);
        }
        return stream.ToArray();
    }

    /// <summary>
    /// Every row of a file, converted. A last line without its line end is what a crash leaves of a row: exactly that line is
    /// ignored, and <paramref name="notice"/> says so.
    /// </summary>
    /// <exception cref="RunDirectoryException">The file is missing, lacks a column or has a malformed row (with its line).</exception>
    public static List<TValue> Read<TRow, TValue>(string path, Func<TRow, TValue> convert, out string? notice)
    {
        var bytes = WholeLines(path, out notice);
        var values = new List<TValue>();
        try
        {
            using var reader = CsvReader.Create(bytes, Reading);
            using var rows = reader.GetRecords<TRow>().GetEnumerator();
            while (rows.MoveNext())
            {
                try
                {
                    values.Add(convert(rows.Current));
                }
                catch (FormatException error)
                {
                    throw Malformed(path, reader.LineNumber, error.Message, error);
                }
            }
        }
        catch (Exception error)
            when (error is CsvFormatException or FormatException or InvalidOperationException or KeyNotFoundException)
        {
            throw Malformed(path, (error as CsvFormatException)?.LineNumber ?? 0, error.Message, error);
        }
        return values;
    }

    /// <summary>Every record's fields as they are, the header first.</summary>
    public static List<string[]> ReadFields(string path)
    {
        var bytes = WholeLines(path, out _);
        var records = new List<string[]>();
        try
        {
            using var reader = CsvReader.Create(bytes, Reading);
            reader.ReadHeader();
            records.Add([.. reader.Headers]);
            while (reader.Read())
            {
                var fields = new string[reader.FieldCount];
                for (var i = 0; i < fields.Length; i++)
                {
                    fields[i] = reader.GetString(i);
                }
                records.Add(fields);
            }
        }
        catch (CsvFormatException error)
        {
            throw Malformed(path, error.LineNumber, error.Message, error);
        }
        return records;
    }

    /// <summary>Records of plain fields as bytes.</summary>
    public static byte[] EncodeFields(IEnumerable<string[]> records)
    {
        using var stream = new MemoryStream();
        using (var writer = CsvWriter.Create(stream, Rows, leaveOpen: true))
        {
            foreach (var record in records)
            {
                writer.WriteRecord(record);
            }
        }
        return stream.ToArray();
    }

    /// <summary>How many bytes of a file are whole lines.</summary>
    public static int WholeLength(ReadOnlySpan<byte> bytes) => bytes.LastIndexOf((byte)'\n') + 1;

    private static ReadOnlyMemory<byte> WholeLines(string path, out string? notice)
    {
        var bytes = RunFiles.Read(path);
        var whole = WholeLength(bytes);
        var name = Path.GetFileName(path);
        if (whole == 0)
        {
            throw new RunDirectoryException($"{path} has no header row: it is empty or cut off.");
        }
        notice =
            whole == bytes.Length
                ? null
                : $"{name}: the last line was cut off while it was written and is not counted: "
                    + $"\u201c{Printable(bytes.AsSpan(whole))}\u201d";
        return bytes.AsMemory(0, whole);
    }

    private static string Printable(ReadOnlySpan<byte> tail) =>
        string.Concat(
            Encoding.UTF8.GetString(tail[..Math.Min(tail.Length, 80)]).Select(c => char.IsControl(c) ? '.' : c)
        );

    private static RunDirectoryException Malformed(string path, long line, string what, Exception error) =>
        new(
            line > 0
                ? $"{path}, line {line}: {Words.OneLine(what)} Was the file edited?"
                : $"{path}: {Words.OneLine(what)} Was the file edited?",
            error
        );
}
