"""How loops are compiled and run on the CPU. Imported late: loading the compiler takes a good part of a second."""
