"""The process, the machine, files and errors: what every room stands on."""
