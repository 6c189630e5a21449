package nodeconfig

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Settings are the keys that a service declares, and after [Settings.Load] where each has its value from. They are for one
// goroutine.
type Settings struct {
	prefix   string
	keys     []*key          // in the order of their declaration, a section's together
	byName   map[string]*key // of keys
	sections map[string]bool // every path of which keys are below
	families []*family
	short    map[string]*key // by the name of a flag
	checks   []func() error

	problems []*ProblemError
	at       map[string]place // keys and sections that the file has
}

// key is one value.
type key struct {
	name, doc string
	value     Value
	flag      string // its own name as a flag; "" = none
	secret    bool
	file      *key // of a secret: the key that names the file; nil = none
	said      *said
}

// said is a value that was given.
type said struct {
	text  string
	where origin
	point string // the excerpt
}

// family is a section whose keys repeat under names that are not known before.
type family struct {
	section  string
	suffixes []string // of the keys of each
	example  string   // a name
	declare  func(name string)
	check    func(name string) error
	declared map[string]bool
}

// New returns Settings without keys. The prefix is that of the variables, such as "SHOP_".
func New(prefix string) *Settings {
	return &Settings{prefix: prefix, byName: map[string]*key{}, sections: map[string]bool{}, short: map[string]*key{}, at: map[string]place{}}
}

// Add declares a key: words in small letters and underscores, joined by dots. The keys of a section must follow one
// another. It panics if there is one of that name.
func (s *Settings) Add(name, doc string, v Value) { s.add(&key{name: name, doc: doc, value: v}) }

// Secret declares a key whose value is never shown, and with it the key NAME_file, which names a file that holds it.
func (s *Settings) Secret(name, doc string, p *string) {
	v := Text(p)
	v.hide = func(string) string { return hidden }
	s.secret(name, doc, v)
}

func (s *Settings) secret(name, doc string, v Value) {
	file := &key{name: name + "_file", doc: fmt.Sprintf("Path of a file with %s, without the line break at its end.", name), value: Text(new(string))}
	s.add(&key{name: name, doc: doc, value: v, secret: true, file: file})
	s.add(file)
}

func (s *Settings) add(k *key) {
	if s.byName[k.name] != nil || s.sections[k.name] {
		panic("nodeconfig: " + k.name + " is declared twice")
	}
	s.byName[k.name] = k
	s.keys = append(s.keys, k)
	for section := k.name; ; {
		i := strings.LastIndexByte(section, '.')
		if i < 0 {
			return
		}
		section = section[:i]
		s.sections[section] = true
	}
}

// Preset has the key hold the text unless something is given, in place of its default. It panics if there is no such key,
// or the key cannot hold the text.
func (s *Settings) Preset(name, text string) {
	k := s.byName[name]
	if k == nil {
		panic("nodeconfig: Preset of " + name + ", which is no key")
	}
	if err := k.value.set(text); err != nil {
		panic("nodeconfig: Preset of " + name + ": " + err.Error())
	}
	k.value.preset, k.value.without = text, ""
}

// Flag gives the key a short name beside its own: a flag's, and with the prefix and in capitals a variable's. It panics if
// there is no such key.
func (s *Settings) Flag(name, flag string) {
	k := s.byName[name]
	if k == nil {
		panic("nodeconfig: Flag of " + name + ", which is no key")
	}
	k.flag, s.short[flag] = flag, k
}

// Flag describes a flag.
type Flag struct {
	Name, Key     string
	Kind, Default string // Default is "" where there is none
	Doc           string
}

// Flags are those that were declared, in the order of their keys.
func (s *Settings) Flags() []Flag {
	var flags []Flag
	for _, k := range s.keys {
		if k.flag != "" {
			flags = append(flags, Flag{k.flag, k.name, k.value.kind, k.value.preset, k.doc})
		}
	}
	return flags
}

// Keys are the names of all keys, in the order of their declaration.
func (s *Settings) Keys() []string {
	names := make([]string, len(s.keys))
	for i, k := range s.keys {
		names[i] = k.name
	}
	return names
}

// Check has Load call the function when all values are in their places. Of the errors that it returns, alone or joined,
// a [*KeyError] and a [*node.ConfigError] are told with the place of the key.
func (s *Settings) Check(check func() error) { s.checks = append(s.checks, check) }

// Layers are what operators say, the lower layers first.
type Layers struct {
	// File is the path of a YAML file, of at most 1 MiB; "" = none.
	File string
	// Environ is as of os.Environ.
	Environ []string
	// Variables with the prefix that are for somebody else.
	Variables []string
	// Flags that were given: by the names that [Settings.Flag] made, without dashes.
	Flags map[string]string
	// Set are values of a flag --set, each KEY=VALUE with any key.
	Set []string
}

// maxProblems bounds what Load reports.
const maxProblems = 100

// Load puts what the layers say into the variables. It reports all problems at once, each a [*ProblemError], joined; up to 100.
// It is called once.
func (s *Settings) Load(l Layers) error {
	s.readFile(l.File)
	s.readEnviron(l.Environ, l.Variables)
	s.readFlags(l.Flags, l.Set)
	for _, k := range s.keys {
		if k.file != nil {
			s.readSecret(k)
		}
		if k.said == nil {
			continue
		}
		if err := k.value.set(k.said.text); err != nil {
			s.wrong(k.name, k.said.where, k.said.point, "%v", err)
		}
	}
	wrong := map[string]bool{} // keys whose value is not in its place, of which a check says nothing new
	for _, p := range s.problems {
		wrong[strings.TrimSuffix(p.Key, "_file")] = true
	}
	for _, check := range s.checks {
		for _, err := range flatten(check()) {
			if name, want := keyOf(err); name == "" || !wrong[name] {
				s.checked(name, want)
			}
		}
	}
	slices.SortStableFunc(s.problems, func(a, b *ProblemError) int {
		const last = byFlag + 1 // what nothing was said of
		return cmp.Or(cmp.Compare(cmp.Or(a.where.layer, last), cmp.Or(b.where.layer, last)), cmp.Compare(a.where.line, b.where.line), cmp.Compare(a.where.column, b.where.column))
	})
	var all []error
	for i, p := range s.problems {
		if i == maxProblems {
			all = append(all, fmt.Errorf("and %d problems more", len(s.problems)-i))
			break
		}
		all = append(all, p)
	}
	return errors.Join(all...)
}

func (s *Settings) wrong(name string, where origin, excerpt, format string, args ...any) {
	s.problems = append(s.problems, &ProblemError{Key: name, Want: fmt.Sprintf(format, args...), where: where, excerpt: excerpt})
}

// checked reports a problem that a check found, at the place of its key, or the nearest section that the file has.
func (s *Settings) checked(name, want string) {
	k := cmp.Or(s.byName[name], s.byName[name+"_file"])
	if k != nil && k.said == nil && k.file != nil && k.file.said != nil {
		k = k.file
	}
	switch {
	case k == nil:
		for section := name; section != ""; section = section[:max(strings.LastIndexByte(section, '.'), 0)] {
			if p, there := s.at[section]; there {
				s.wrong(name, p.where, p.point, "%s", want)
				return
			}
		}
		s.wrong(name, origin{}, "", "%s", want)
	case k.said != nil:
		s.wrong(name, k.said.where, k.said.point, "%s", want)
	case k.flag != "":
		s.wrong(name, origin{layer: byFlag, name: k.flag}, "", "%s", want)
	default:
		s.wrong(name, origin{}, "", "%s", want)
	}
}

// say enters a value that a layer gives, and reports one that the layer has given already.
func (s *Settings) say(k *key, v said) {
	if k.said != nil && k.said.where.layer == v.where.layer {
		s.wrong(k.name, v.where, v.point, "given twice: here and by %v", k.said.where)
		return
	}
	k.said = &v
}

// named is the key of that name, or nil. The keys of a family's member are declared when they are asked for first.
func (s *Settings) named(name string) (*key, error) {
	if k := s.byName[name]; k != nil {
		return k, nil
	}
	f, member, _ := s.split(name)
	if f == nil {
		return nil, nil
	}
	if err := s.member(f, member); err != nil {
		return nil, err
	}
	return s.byName[name], nil
}

// member declares the keys of a family's member, unless they are.
func (s *Settings) member(f *family, name string) error {
	if f.declared[name] {
		return nil
	}
	if err := f.check(name); err != nil {
		return err
	}
	f.declared[name] = true
	f.declare(name)
	return nil
}

// below are the names of what may stand directly in the section; "" is the whole.
func (s *Settings) below(section string) string {
	var names []string
	add := func(path string) {
		rest := path
		if section != "" {
			var inside bool
			if rest, inside = strings.CutPrefix(path, section+"."); !inside {
				return
			}
		}
		if name, _, _ := strings.Cut(rest, "."); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	for _, k := range s.keys {
		add(k.name)
	}
	for _, f := range s.families {
		add(f.section)
	}
	return strings.Join(names, ", ")
}
