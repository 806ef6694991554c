"""From raw videos to training shards: decode, cut, measure, filter, caption, pack. `build.build` runs it all."""
