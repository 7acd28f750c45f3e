package shards

import "encoding/json"

// SignManifest gives a manifest document the checksum that belongs to it.
func SignManifest(b []byte) ([]byte, error) {
	var f manifestFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, err
	}
	var all map[string]any
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, err
	}
	all["checksum"] = f.sum()
	return json.Marshal(all)
}

// Seat is where a folder stands.
type Seat = seat

// Is reports whether nothing says that the seats differ.
func (s seat) Is(o seat) bool { return s.is(o) }
