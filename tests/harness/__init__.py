"""What tests are run on: file systems with quirks, accounts, clocks."""
