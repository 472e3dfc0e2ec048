"""Pure configuration: environment and arguments go in, values come out; nothing is connected."""
