using VirtBench.Cli;

return CommandLine.Run(args, Terminal.OfProcess());
