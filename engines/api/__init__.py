"""The Python interface of the run time; `engines` lists what is public."""
