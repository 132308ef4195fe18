// What Rust may ask of Nix's store library: plain functions over plain values. No type of Nix is named here, so
// the code that cxx generates compiles without Nix's headers and flags.
//
// Every function that can fail throws Failure and nothing else; its what() is one character for the kind and
// then the text for a person, without colour codes.
#pragma once

#include "rust/cxx.h"

#include <cstdint>
#include <exception>
#include <memory>
#include <string>

namespace nix_store_fs {

struct Param;
struct Info;
struct Size;

class Failure final : public std::exception
{
public:
    // The same letters as in src/store/ffi.rs.
    enum Kind : char { Other = 'o', Unsupported = 'u' };

    Failure(Kind kind, const std::string & text)
        : coded(static_cast<char>(kind) + text)
    {
    }
    const char * what() const noexcept override
    {
        return coded.c_str();
    }

private:
    std::string coded;
};

// An open store. Values are copied into it and out of it; no reference into it leaves these functions.
class Handle
{
public:
    struct Impl;
    explicit Handle(std::unique_ptr<Impl> impl);
    ~Handle();

    rust::Vec<uint8_t> logical_dir() const;
    rust::Vec<uint8_t> physical_dir() const;
    void connect() const;
    bool is_valid(rust::Str path) const;
    rust::Vec<Info> closure(rust::Slice<const rust::String> roots) const;
    rust::Vec<Size> sizes(rust::Slice<const rust::String> roots) const;
    rust::Vec<Size> sizes_at_once(rust::Slice<const rust::String> roots) const;
    void add_temp_root(rust::Str path) const;
    void add_indirect_root(rust::Str path, rust::Slice<const uint8_t> link) const;

    // What changes a store's database: for those that are the caller's own.
    rust::Vec<rust::String> valid_paths() const;
    void register_paths(rust::Slice<const rust::String> names, rust::Slice<const Info> infos) const;
    bool fill(rust::Slice<const uint8_t> database, rust::Slice<const Info> infos) const;
    void drop_absent() const;

private:
    std::unique_ptr<Impl> impl;
};

// The version of the library that is loaded; needs no initialisation.
rust::String nix_version();

// To be called once, before all that follows. Installs no signal handlers.
void initialise(uint8_t verbosity);

// Where Nix keeps its state when a store's address does not say.
rust::Vec<uint8_t> default_state_dir();

// The address of the store that Nix's own commands open: the setting `store`, whose default is NIX_REMOTE.
rust::Vec<uint8_t> configured_store();

// Tells Nix that the calling thread's mount namespace is private, where Nix wants to be told.
void allow_private_remount();

std::unique_ptr<Handle> open_store(rust::Str base, rust::Slice<const Param> params);

} // namespace nix_store_fs
