"""What every stage needs round its work: folders, safe files, one run at a time, processes, bars."""
