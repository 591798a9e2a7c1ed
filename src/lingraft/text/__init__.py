"""What depends on a language or a script alone: tags, folding, units, scripts without spaces."""
