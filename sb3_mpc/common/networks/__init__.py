"""Networks of the world model, their codings and losses; nothing here knows how it is used."""
