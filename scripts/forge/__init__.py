"""What the phases share. Imported by the scripts beside it, never run."""

VERSION = "0.1.0"
