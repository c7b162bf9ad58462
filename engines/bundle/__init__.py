"""The bundle on disk: its manifest and its files, each verified when it is used."""
